"""Export of a classifier to `torch.export` (.pt2) and ONNX, checked before the file is there.

The exported function maps `images` (B, C, height, width), fp32 and normalised by ImageNet's mean
and deviation (`convnextv2.tasks`), to `logits` (B, classes).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from convnextv2.encoder import ConvNeXtV2

TOLERANCE = 1e-4
"""Largest absolute difference of a logit from PyTorch's that a check lets pass."""

ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LIMIT = 2 * 1024**3
"""Bytes a single ONNX file can hold; larger weights go into a file beside it."""

Run = Callable[[Tensor], Tensor]


class ExportError(RuntimeError):
    """What was exported computes something else than the model."""


def export_program(
    model: ConvNeXtV2, image_size: tuple[int, int], *, batch: int | None = None
) -> ExportedProgram:
    """Export `model` (classifier, in eval mode) for images of (height, width).

    `batch` fixes the batch size; None leaves it open.
    """
    if model.training:
        raise ValueError("a model in training mode has stochastic depth; call eval() first")
    # 2, because an example of one image would make PyTorch take a batch of 1 for a constant.
    example = _noise(model, image_size, batch or 2)
    dynamic = None if batch else {"images": {0: Dim("batch", min=1)}}
    return torch.export.export(model, (example,), dynamic_shapes=dynamic)


def export_torch(
    model: ConvNeXtV2,
    destination: Path,
    image_size: tuple[int, int],
    *,
    batch: int | None = None,
) -> float:
    """Write a .pt2 file for `torch.export.load`; return the largest difference found.

    Raises:
        ExportError: When the file, read again, is off by more than TOLERANCE. It is not kept.
    """
    with _whole_or_not_at_all(destination) as partial:
        # Open files, not paths: those would have to end in .pt2.
        with partial.open("wb") as file:
            torch.export.save(export_program(model, image_size, batch=batch), file)
        with partial.open("rb") as file:
            module = torch.export.load(file).module()
        return _check(model, module, image_size, batch)


def export_onnx(
    model: ConvNeXtV2,
    destination: Path,
    image_size: tuple[int, int],
    *,
    batch: int | None = None,
) -> float:
    """Write an ONNX file; return the largest difference onnxruntime's logits have.

    Weights of more than 2 GB (Huge) lie in `<destination>.data` beside it.

    Raises:
        ValueError: When a library is missing.
        ExportError: When onnxruntime is off by more than TOLERANCE. The file is not kept.
    """
    _require_onnx()
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    with _whole_or_not_at_all(destination) as partial:
        program = torch.onnx.export(
            export_program(model, image_size, batch=batch),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=None if batch else ({0: "batch"},),
            verbose=False,
        )
        assert program is not None
        program.save(partial, external_data=weight_bytes > 0.9 * ONNX_LIMIT)
        return _check(model, _onnxruntime(partial), image_size, batch)


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.no_grad()
def _check(
    model: ConvNeXtV2, exported: Run, image_size: tuple[int, int], batch: int | None
) -> float:
    worst = 0.0
    for size in [batch] if batch else [1, 3]:
        images = _noise(model, image_size, size)
        difference = float((exported(images) - model(images)).abs().max())
        # Written so that NaN fails, too.
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported model is off by {difference:.2g} on random images (batch {size}); "
                f"at most {TOLERANCE:.0e} is accepted, nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _noise(model: ConvNeXtV2, image_size: tuple[int, int], batch: int) -> Tensor:
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, model.in_channels, *image_size, generator=generator).to(parameter)


def _require_onnx() -> None:
    missing = [name for name in ONNX_LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"writing and checking ONNX needs {', '.join(missing)}; "
            'pip install "convnextv2[export]"'
        )


@contextmanager
def _whole_or_not_at_all(destination: Path) -> Iterator[Path]:
    """Yield a path of the same name in a folder beside it; moved in place unless something fails.

    A folder, because ONNX may write a second file and names it in the first.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    room = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    try:
        yield room / destination.name
        # The weights first: whoever sees the model finds them.
        for path in sorted(room.iterdir(), key=lambda path: path.name == destination.name):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, destination.with_name(path.name))
    finally:
        shutil.rmtree(room, ignore_errors=True)
