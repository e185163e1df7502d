"""Commands on weight files: inspect, convert."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnextv2.sizes import SIZES
from pipelines.commands import command

if TYPE_CHECKING:
    from convnextv2.weights import Geometry, Inspection


def add_weights_commands(commands: Any) -> None:
    """Add `weights` and its verbs to the subparsers `commands`."""
    weights = command(
        commands,
        "weights",
        "look into weight files, and convert them for other libraries",
        "convnextv2 weights inspect convnextv2_atto_1k_224_ema.pt",
    )
    verbs = weights.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_inspect(verbs)
    _add_convert(verbs)


def _add_inspect(verbs: Any) -> None:
    parser = command(
        verbs,
        "inspect",
        "say what model a file holds, from whom, and what it can be used for",
        "convnextv2 weights inspect checkpoint-799.pth --json",
    )
    _add_source(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(act=_act_inspect)


def _add_convert(verbs: Any) -> None:
    parser = command(
        verbs,
        "convert",
        "write weights for the official code, timm or Hugging Face transformers",
        "convnextv2 weights convert model.safetensors convnextv2-atto/ --to hf",
    )
    _add_source(parser)
    parser.add_argument(
        "destination",
        type=Path,
        metavar="DEST",
        help="official, timm: a .safetensors or .pt file; hf: a new folder",
    )
    parser.add_argument("--to", choices=("official", "timm", "hf"), required=True)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(act=_act_convert)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="safetensors or PyTorch file, Hugging Face folder, or checkpoint folder of a run",
    )
    parser.add_argument("--part", help="entry of a PyTorch file to read, such as model_ema")


def _act_inspect(options: argparse.Namespace) -> int:
    from convnextv2.weights import inspect

    found = inspect(options.file, part=options.part)
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(found.file)
        for what, words in _described(found).items():
            print(f"  {what:11} {words}")
    return 0


def _act_convert(options: argparse.Namespace) -> int:
    from convnextv2.weights import inspect, write

    found = inspect(options.file, part=options.part)
    written = write(found.state, options.destination, to=options.to)
    parameters = sum(value.numel() for value in written.values())
    notes = _notes(found.geometry, options.to)
    if options.json:
        outcome = {
            "file": str(found.file),
            "dialect": found.dialect,
            "destination": str(options.destination),
            "to": options.to,
            "size": found.geometry.size,
            "parameters": parameters,
            "notes": notes,
        }
        print(json.dumps(outcome, indent=1))
    else:
        print(
            f"{options.destination}: {found.geometry.size} for {options.to}, "
            f"{parameters:,} parameters, from {found.dialect}"
        )
        for note in notes:
            print(f"  {note}")
    return 0


def _described(found: "Inspection") -> dict[str, str]:
    model = found.geometry
    others = [name for name in found.parts if name != found.part]
    part = {"part": f"{found.part}, there {'are' if others[1:] else 'is'} also {', '.join(others)}"}
    why = found.why_no_reconstruction
    return {
        "dialect": found.dialect,
        "container": found.container,
        **(part if others else {}),
        "size": f"{model.size}, depths {_row(model.depths)}, channels {_row(model.dims)}",
        "images": f"{model.in_channels} channels, stem stride {model.stem_stride}",
        "classes": str(model.num_classes or "no head"),
        "parameters": f"{found.parameters:,} in {', '.join(found.dtypes)}",
        "decoder": f"none, so reconstruct will not work: {why}"
        if why
        else f"{model.decoder}, {model.decoder_dim} channels, depth {model.decoder_depth}",
    }


def _row(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))


def _notes(geometry: "Geometry", to: str) -> list[str]:
    """What the user would otherwise learn from an error of the library."""
    notes = []
    if geometry.decoder and to != "official":
        notes.append(f"the encoder only: {to} has no place for FCMAE's decoder and mask token")
    if not geometry.num_classes and to != "official":
        notes.append(
            "without final norm and head, which are trained with the classifier: "
            + {"timm": "load with strict=False", "hf": "transformers starts them anew"}[to]
        )
    published = geometry.size in SIZES and SIZES[geometry.size].parameters
    if to == "timm" and not published:
        notes.append(
            f"timm has no model of this size: timm.models.convnext.ConvNeXt(depths="
            f"{geometry.depths}, dims={geometry.dims}, use_grn=True, ls_init_value=None)"
        )
    if to == "timm" and geometry.stem_stride != 4:
        notes.append(
            f"stem stride {geometry.stem_stride}: give timm patch_size={geometry.stem_stride}"
        )
    return notes
