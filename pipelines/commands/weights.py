"""Commands on weight files: inspect, convert."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands import Commands, command, command_group

if TYPE_CHECKING:
    from convnextv2.weights import Geometry, Inspection, Metadata


def add_weights_commands(commands: Commands) -> None:
    """Add `weights` and its verbs to the subparsers `commands`."""
    verbs = command_group(
        commands,
        "weights",
        "inspect weight files, and convert them for other libraries",
        "convnextv2 weights inspect convnextv2_atto_1k_224_ema.pt",
    )
    _add_inspect(verbs)
    _add_convert(verbs)


def _add_inspect(verbs: Commands) -> None:
    parser = command(
        verbs,
        "inspect",
        "show which model a file holds, where it is from and what it can be used for",
        "convnextv2 weights inspect checkpoint-799.pth --json",
        _act_inspect,
    )
    _add_source(parser)


def _add_convert(verbs: Commands) -> None:
    parser = command(
        verbs,
        "convert",
        "write weights for the official code, timm or Hugging Face transformers",
        "convnextv2 weights convert model.safetensors convnextv2-atto/ --to hf",
        _act_convert,
    )
    _add_source(parser)
    parser.add_argument(
        "destination",
        type=Path,
        metavar="DEST",
        help="official, timm: a .safetensors or .pt file; hf: a new folder",
    )
    parser.add_argument(
        "--to", choices=("official", "timm", "hf"), required=True, help="whose layout to write"
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of the classes, one per line"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="side in pixels that images are evaluated at"
    )
    parser.add_argument(
        "--crop",
        type=crop,
        metavar="SHARE|squash",
        help="central share of an image that is evaluated, or the whole image resized to a square",
    )


def crop(text: str) -> float:
    """A share of the image; 0 for "squash"."""
    try:
        fraction = 0.0 if text == "squash" else float(text)
    except ValueError:
        fraction = -1.0
    if not (0 < fraction <= 1 or text == "squash"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no crop; give a share such as 0.875, or squash"
        )
    return fraction


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="safetensors or PyTorch file, Hugging Face folder, or checkpoint folder of a run or "
        "of DeepSpeed",
    )
    parser.add_argument(
        "--part",
        help="which model of a file with several: an entry (model_ema) or a prefix (student)",
    )


def _act_inspect(options: argparse.Namespace) -> int:
    from pipelines.training.weights.reading import inspect

    found = inspect(options.file, part=options.part)
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(found.file)
        for what, text in _described(found).items():
            print(f"  {what:11} {text}")
    return 0


def _act_convert(options: argparse.Namespace) -> int:
    from convnextv2.weights import write
    from pipelines.commands.loading_code import how_to_load
    from pipelines.training.weights.reading import inspect

    found = inspect(options.file, part=options.part)
    metadata = _metadata(found, options)
    written = write(found.state, options.destination, to=options.to, metadata=metadata)
    parameters = sum(value.numel() for value in written.values())
    notes = _notes(found.geometry, metadata, options.to)
    load = how_to_load(found.geometry, options.destination, options.to)
    if options.json:
        outcome = {
            "file": str(found.file),
            "dialect": found.dialect,
            "destination": str(options.destination),
            "to": options.to,
            "size": found.geometry.size,
            "parameters": parameters,
            "notes": notes,
            "load": load,
        }
        print(json.dumps(outcome, indent=1))
    else:
        print(
            f"{options.destination}: {found.geometry.size} for {options.to}, "
            f"{parameters:,} parameters, from {found.dialect}"
        )
        for note in notes:
            print(f"  {note}")
        for line in ["load it with", *(f"  {line}" for line in load)] if load else []:
            print(f"  {line}")
    return 0


def _metadata(found: "Inspection", options: argparse.Namespace) -> "Metadata":
    """The file's metadata, replaced where the command line gives other values."""
    from convnextv2.weights import Evaluation

    metadata = found.metadata
    if options.classes is not None:
        lines = options.classes.read_text().splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
        if len(names) != found.geometry.num_classes:
            raise ValueError(
                f"{options.classes} names {len(names)} classes, {found.file} has "
                f"{found.geometry.num_classes or 'no head'}"
            )
        metadata = replace(metadata, classes=names)
    if options.image_size is None and options.crop is None:
        return metadata
    evaluation = metadata.evaluation or Evaluation.usual()
    if options.image_size is not None:
        evaluation = replace(evaluation, image_size=options.image_size)
    if options.crop is not None:
        evaluation = replace(evaluation, crop=options.crop or None)
    return replace(metadata, evaluation=evaluation)


def _described(found: "Inspection") -> dict[str, str]:
    model = found.geometry
    others = [name for name in found.parts if name != found.part]
    part = {"part": f"{found.part}, there {'are' if others[1:] else 'is'} also {', '.join(others)}"}
    why = found.why_no_reconstruction
    names = {"names": f"under {found.prefix}" + _left_out(found)} if found.prefix else {}
    return {
        "dialect": found.dialect,
        "container": found.container,
        **(part if others else {}),
        **names,
        "size": f"{model.size}, depths {_row(model.depths)}, channels {_row(model.dims)}",
        "images": f"{model.in_channels} channels, stem stride {model.stem_stride}",
        "classes": str(model.num_classes or "no head") + _named(found.metadata.classes),
        **_evaluated(found.metadata),
        "parameters": f"{found.parameters:,} in {', '.join(found.dtypes)}",
        "decoder": f"none, so reconstruct will not work: {why}"
        if why
        else f"{model.decoder}, {model.decoder_dim} channels, depth {model.decoder_depth}",
    }


def _row(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))


def _left_out(found: "Inspection") -> str:
    if not found.left_out:
        return ""
    more = ", …" if found.left_out[3:] else ""
    return f"; {len(found.left_out)} others are left out: {', '.join(found.left_out[:3])}{more}"


def _named(classes: tuple[str, ...]) -> str:
    more = ", …" if classes[3:] else ""
    return f": {', '.join(classes[:3])}{more}" if classes else ""


def _evaluated(metadata: "Metadata") -> dict[str, str]:
    evaluation = metadata.evaluation
    if evaluation is None:
        return {}
    cut = "squashed" if evaluation.crop is None else f"central {evaluation.crop:.1%}"
    deep = f", of {evaluation.bits} bits" if evaluation.bits != 8 else ""
    return {"evaluation": f"{evaluation.image_size} px, {cut}, {evaluation.interpolation}{deep}"}


def _notes(geometry: "Geometry", metadata: "Metadata", to: str) -> list[str]:
    """What the user should know before loading the file in the other library."""
    notes = []
    if geometry.decoder and to != "official":
        notes.append(f"the encoder only: {to} has no place for FCMAE's decoder and mask token")
    if not geometry.num_classes and to != "official":
        notes.append(
            "without final norm and head, which are trained with the classifier: "
            f"{'timm' if to == 'timm' else 'transformers'} starts them anew"
        )
    if to != "hf":
        return notes
    if geometry.num_classes and not metadata.classes:
        notes.append("the classes have no names in the file; give --classes FILE")
    evaluation = metadata.evaluation
    if evaluation is None:
        if geometry.in_channels == 3:
            notes.append(
                "the file does not say how it is evaluated: 224 px, central 87.5%, ImageNet's mean "
                "and deviation are assumed; --image-size and --crop change that"
            )
    elif evaluation.interpolation == "area":
        notes.append("transformers has no area interpolation: antialiased bilinear is nearest")
    if geometry.in_channels != len(evaluation.mean if evaluation else range(3)):
        notes.append("no preprocessor_config.json: the mean of these channels is not known")
    return notes
