"""Commands that analyse or export a model: reconstruct, collapse, export."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipelines.commands import Commands, command, say

Value = TypeVar("Value")


def add_analysis_commands(commands: Commands) -> None:
    """Add the commands of this file to the subparsers `commands`."""
    _add_reconstruct(commands)
    _add_collapse(commands)
    _add_export(commands)


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of "224" or "224x320"."""
    height, _, width = text.partition("x")
    try:
        size = int(height), int(width or height)
    except ValueError:
        size = 0, 0
    if min(size) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give 224, or 224x320 (HxW)")
    return size


def batch_size(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no batch size; give a number, or dynamic")
    return int(text)


def open_or(read: Callable[[str], Value]) -> Callable[[str], Value | None]:
    """Read a value, or None for "dynamic"."""
    return lambda text: None if text == "dynamic" else read(text)


def _add_reconstruct(commands: Commands) -> None:
    parser = command(
        commands,
        "reconstruct",
        "show how a pretrained model reconstructs masked patches: gallery.html and gallery.png",
        "convnextv2 reconstruct fcmae.safetensors photos/ --output gallery/ --max-images 8",
        _act_reconstruct,
    )
    parser.add_argument("weights", type=Path, help="weights of a pretraining, with the decoder")
    parser.add_argument("images", type=Path, help="folder of images, flat or in class folders")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--mask-ratio", type=float, default=0.6, help="share of patches to hide (default: 0.6)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which patches are hidden (default: 0)")
    parser.add_argument("--max-images", type=int, default=16, help="images at most (default: 16)")
    parser.add_argument(
        "--image-size", type=image_size, metavar="N|HxW", help="in pixels (default: 7 patches)"
    )
    parser.add_argument(
        "--patch-size", type=int, help="in pixels (default: the encoder's total stride)"
    )
    parser.add_argument(
        "--raw-pixels",
        action="store_true",
        help="the model was pretrained with norm_pix_loss=false",
    )


def _add_collapse(commands: Commands) -> None:
    parser = command(
        commands,
        "collapse",
        "measure how similar the channels of each block are, of one checkpoint or two",
        "convnextv2 collapse ours.safetensors theirs.pt --images val/ --output collapse/",
        _act_collapse,
    )
    parser.add_argument("weights", type=Path, help="weights of any kind")
    parser.add_argument("other", type=Path, nargs="?", help="weights to compare with")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--max-images", type=int, default=1000, help="images at most (default: 1000)"
    )
    parser.add_argument(
        "--image-size", type=image_size, default=(224, 224), metavar="N|HxW", help="default: 224"
    )
    parser.add_argument(
        "--block", help="whose maps are drawn, such as stages.2.5 (default: the last of stages.2)"
    )


def _add_export(commands: Commands) -> None:
    parser = command(
        commands,
        "export",
        "write a model as ONNX or torch.export program, and check it against PyTorch",
        "convnextv2 export model.safetensors model.onnx --format onnx",
        _act_export,
    )
    parser.add_argument("weights", type=Path, help="weights of any kind")
    parser.add_argument("destination", type=Path, help="file to write")
    parser.add_argument(
        "--format", choices=("onnx", "torch"), required=True, help="ONNX, or a torch.export program"
    )
    parser.add_argument(
        "--outputs",
        choices=("logits", "features", "stages"),
        help="of the classifier, of the encoder alone, or the maps of its four stages (default: "
        "logits if there is a head, else features)",
    )
    parser.add_argument(
        "--image-size",
        type=open_or(image_size),
        metavar="N|HxW|dynamic",
        help="in pixels (default: dynamic, any size)",
    )
    parser.add_argument(
        "--batch",
        type=open_or(batch_size),
        metavar="N|dynamic",
        help="images in a batch (default: dynamic, any number)",
    )


def _act_reconstruct(options: argparse.Namespace) -> int:
    say(f"reconstructing images of {options.images} with {options.weights}")
    from pipelines.report.gallery import make_gallery

    made = make_gallery(
        options.weights,
        options.images,
        options.output,
        mask_ratio=options.mask_ratio,
        seed=options.seed,
        max_images=options.max_images,
        image_size=options.image_size,
        patch_size=options.patch_size,
        norm_pix_loss=not options.raw_pixels,
    )
    if options.json:
        print(json.dumps(made, indent=1))
    else:
        print(f"{made['images']} images, loss {made['loss']:.3f}")
        for file in made["files"]:
            print(f"  {file}")
        _print_skipped(made["skipped"])
    return 0


def _act_collapse(options: argparse.Namespace) -> int:
    say(f"measuring {options.weights} on images of {options.images}")
    from pipelines.report.collapse import analyse_collapse

    found = analyse_collapse(
        [options.weights, *([options.other] if options.other else [])],
        options.images,
        options.output,
        image_size=options.image_size,
        max_images=options.max_images,
        block=options.block,
    )
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for checkpoint in found["checkpoints"]:
            print(checkpoint["weights"])
            for block in checkpoint["blocks"]:
                distance = block["distance"]
                number = "     –" if distance is None else f"{distance:6.4f}"
                print(f"  {block['block']:12} {number}  {block['dead']:6.1%} dead")
        print(f"{found['images']:,} images: {options.output / 'collapse.html'}")
        _print_skipped(found["skipped"])
    return 0


def _act_export(options: argparse.Namespace) -> int:
    say(f"exporting {options.weights}")
    from convnextv2.analysis.models import read_classifier, read_encoder
    from convnextv2.export import Outputs, export_onnx, export_torch
    from pipelines.training.weights.reading import inspect

    found = inspect(options.weights)
    outputs: Outputs = options.outputs or ("logits" if found.geometry.num_classes else "features")
    model = (read_classifier if outputs == "logits" else read_encoder)(found)
    write = {"onnx": export_onnx, "torch": export_torch}[options.format]
    difference = write(
        model, options.destination, options.image_size, batch=options.batch, outputs=outputs
    )
    sides = options.image_size or ("height", "width")
    shape = [options.batch or "batch", model.in_channels, *sides]
    if options.json:
        written = {
            "file": str(options.destination),
            "format": options.format,
            "images": shape,
            "outputs": outputs,
            "difference": difference,
        }
        print(json.dumps(written, indent=1))
    else:
        print(
            f"{options.destination}: images ({', '.join(map(str, shape))}) to {outputs}, "
            f"off by at most {difference:.1e} from PyTorch"
        )
    return 0


def _print_skipped(reasons: list[str]) -> None:
    for reason in reasons:
        print(f"  skipped {reason}")
