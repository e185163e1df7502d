"""Writes weights for the official code, timm and Hugging Face; a file is complete or absent."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from convnextv2 import PathLike
from convnextv2.durable import atomically
from convnextv2.weights.dialects import Target, convert
from convnextv2.weights.geometry import Geometry, geometry_of
from convnextv2.weights.huggingface import CONFIG, PREPROCESSOR, model_config, preprocessor_config
from convnextv2.weights.metadata import UNKNOWN, Evaluation, Metadata
from convnextv2.weights.state import State, WeightsError

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".pth", ".bin")


def write(
    state: Mapping[str, Tensor],
    destination: PathLike,
    *,
    to: Target,
    metadata: Metadata = UNKNOWN,
) -> State:
    """Write a state in the form of another library; return what was written.

    Args:
        state: Under our names.
        destination: official, timm: a .safetensors file, or a PyTorch file (.pt, .pth, .bin), in
            which the official code's weights are under "model". hf: a folder, not there yet.
        to: Whose names and layout.
        metadata: Class names and evaluation; .safetensors files and folders have a place for
            them. A folder says the usual evaluation, if none is given.

    Raises:
        WeightsError: When the state is no ConvNeXt V2's, the library has no such model, or the
            destination does not fit.
    """
    destination = Path(destination)
    converted = {name: _alone(value) for name, value in convert(state, to=to).items()}
    if to == "hf":
        _check_folder(destination)
    elif destination.suffix not in (SAFETENSORS, *PICKLES):
        raise WeightsError(
            f"{destination} must end in one of {', '.join([SAFETENSORS, *PICKLES])} for {to}"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with atomically(destination) as partial:
        if to == "hf":
            _write_folder(converted, geometry_of(state), partial, metadata)
        elif destination.suffix == SAFETENSORS:
            save_file(converted, partial, metadata=metadata.as_entries())
        else:
            torch.save({"model": converted} if to == "official" else converted, partial)
    return converted


def _write_folder(weights: State, geometry: Geometry, folder: Path, metadata: Metadata) -> None:
    evaluation = metadata.evaluation or Evaluation.usual()
    configs = {CONFIG: model_config(geometry, metadata.classes, evaluation)}
    if geometry.in_channels == len(evaluation.mean):
        configs[PREPROCESSOR] = preprocessor_config(evaluation)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata=metadata.as_entries())
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _alone(value: Tensor) -> Tensor:
    """Contiguous and with its own storage, because torch.save writes a tensor's whole storage."""
    value = value.contiguous()
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()


def _check_folder(destination: Path) -> None:
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise WeightsError(f"{destination} exists already; Hugging Face's is a new folder")
