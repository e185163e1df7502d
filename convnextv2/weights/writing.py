"""Writing weights for the official code, timm and Hugging Face; whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from convnextv2.weights.dialects import Target, convert
from convnextv2.weights.geometry import Geometry, geometry_of
from convnextv2.weights.state import State, WeightsError

SAFETENSORS = ".safetensors"
PICKLES = (".pt", ".pth", ".bin")
IMAGE_SIZE = 224


def write(state: Mapping[str, Tensor], destination: Path, *, to: Target) -> State:
    """Write a state of ours as another library's; returns what was written.

    Args:
        state: Under our names.
        destination: official, timm: a .safetensors file, or a PyTorch file (.pt, .pth, .bin), in
            which the official code's weights are under "model". hf: a folder, not there yet.
        to: Whose names and layout.

    Raises:
        WeightsError: When the state is no ConvNeXt V2's, or the destination does not fit.
    """
    converted = {name: _alone(value) for name, value in convert(state, to=to).items()}
    if to == "hf":
        _check_folder(destination)
    elif destination.suffix not in (SAFETENSORS, *PICKLES):
        raise WeightsError(
            f"{destination} must end in one of {', '.join([SAFETENSORS, *PICKLES])} for {to}"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _whole_or_not_at_all(destination) as partial:
        if to == "hf":
            partial.mkdir()
            save_file(converted, partial / "model.safetensors", metadata={"format": "pt"})
            config = huggingface_config(geometry_of(state))
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        elif destination.suffix == SAFETENSORS:
            save_file(converted, partial, metadata={"format": "pt"})
        else:
            torch.save({"model": converted} if to == "official" else converted, partial)
    return converted


def huggingface_config(geometry: Geometry) -> dict[str, Any]:
    """What `config.json` says; the model is built by it, and its number of classes by `id2label`.

    `layer_norm_eps` is the final norm's, 1e-12 by default there and 1e-6 in the published models.
    """
    head = geometry.num_classes > 0
    labels = {str(number): f"LABEL_{number}" for number in range(geometry.num_classes)}
    classes = {"id2label": labels, "label2id": {label: int(n) for n, label in labels.items()}}
    return {
        "architectures": ["ConvNextV2ForImageClassification" if head else "ConvNextV2Model"],
        "model_type": "convnextv2",
        "depths": list(geometry.depths),
        "hidden_sizes": list(geometry.dims),
        "num_stages": len(geometry.depths),
        "num_channels": geometry.in_channels,
        "patch_size": geometry.stem_stride,
        "image_size": IMAGE_SIZE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "drop_path_rate": 0.0,
        **(classes if head else {}),
    }


def _alone(value: Tensor) -> Tensor:
    """Contiguous, and without what else its storage holds, which would be written along."""
    value = value.contiguous()
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if whole else value.clone()


def _check_folder(destination: Path) -> None:
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise WeightsError(f"{destination} exists already; Hugging Face's is a new folder")


@contextmanager
def _whole_or_not_at_all(destination: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; it is moved in place unless something fails."""
    partial = destination.with_name(f".{destination.name}.partial")
    _remove(partial)
    try:
        yield partial
        for file in [partial, *partial.glob("*")]:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        os.replace(partial, destination)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
