"""Export to `torch.export` (.pt2) and ONNX; a file is checked before it gets its name.

The exported function maps `images` (B, C, height, width), fp32 and normalised by ImageNet's mean
and standard deviation (`convnextv2.tasks`), to one of

    logits     (B, classes)
    features   (B, C4, h, w): the encoder alone, its last stage before the final norm
    stages     four maps (B, C, h, w), as detection and segmentation take them
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convnextv2 import PathLike, require
from convnextv2.durable import sync
from convnextv2.encoder import ConvNeXtV2

TOLERANCE = 1e-4
"""Largest absolute difference from PyTorch's outputs that the check accepts."""

ONNX_LIMIT = 2 * 1024**3
"""Bytes a single ONNX file can hold; larger weights go into a file beside it."""

Outputs = Literal["logits", "features", "stages"]
NAMES: dict[Outputs, tuple[str, ...]] = {
    "logits": ("logits",),
    "features": ("features",),
    "stages": ("stage1", "stage2", "stage3", "stage4"),
}
"""Names of the outputs of an ONNX file."""

Run = Callable[[Tensor], Tensor | Sequence[Tensor]]


class ExportError(RuntimeError):
    """The exported function computes something else than the model."""


class FeatureMaps(nn.Module):
    """The encoder's feature maps (B, C, h, w), of all four stages or of the last one alone."""

    def __init__(self, encoder: ConvNeXtV2, *, stages: bool) -> None:
        super().__init__()
        self.encoder, self.stages = encoder, stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.encoder.stage_features(images)
        return tuple(x.permute(0, 3, 1, 2) for x in (maps if self.stages else maps[-1:]))


def export_program(
    model: ConvNeXtV2,
    image_size: tuple[int, int] | None = None,
    *,
    batch: int | None = None,
    outputs: Outputs = "logits",
) -> ExportedProgram:
    """Export `model` (in eval mode).

    Args:
        model: A classifier, or for other outputs than logits an encoder.
        image_size: Fixes (height, width); None leaves both open, from twice the total stride on.
        batch: Fixes the number of images; None leaves it open.
        outputs: What the program returns; see the module's docstring.

    Raises:
        ValueError: For a model in training mode, or logits of a model without head.
    """
    if model.training:
        raise ValueError("a model in training mode has stochastic depth; call eval() first")
    # Not 1 image, nor the smallest size: PyTorch would take such a dimension for a constant.
    example = _noise(model, image_size or (3 * model.stride, 4 * model.stride), batch or 2)
    dynamic = {}
    if batch is None:
        dynamic[0] = Dim("batch", min=1)
    if image_size is None:
        smallest = 2 * model.stride
        dynamic |= {2: Dim("height", min=smallest), 3: Dim("width", min=smallest)}
    module = _returning(model, outputs)
    return torch.export.export(module, (example,), dynamic_shapes={"images": dynamic or None})


def export_torch(
    model: ConvNeXtV2,
    destination: PathLike,
    image_size: tuple[int, int] | None = None,
    *,
    batch: int | None = None,
    outputs: Outputs = "logits",
) -> float:
    """Write a .pt2 file for `torch.export.load`; return the largest difference found.

    See `export_program` for the arguments.

    Raises:
        ExportError: When the file, read again, is off by more than TOLERANCE. It is not kept.
    """
    with _whole_or_not_at_all(Path(destination)) as partial:
        program = export_program(model, image_size, batch=batch, outputs=outputs)
        # Open files, not paths: those would have to end in .pt2.
        with partial.open("wb") as file:
            torch.export.save(program, file)
        with partial.open("rb") as file:
            module = torch.export.load(file).module()
        return _check(model, module, image_size, batch, outputs)


def export_onnx(
    model: ConvNeXtV2,
    destination: PathLike,
    image_size: tuple[int, int] | None = None,
    *,
    batch: int | None = None,
    outputs: Outputs = "logits",
) -> float:
    """Write an ONNX file; return the largest difference that onnxruntime's outputs have.

    Weights of more than 2 GB (Huge) lie in `<destination>.data` beside it. See `export_program`
    for the arguments.

    Raises:
        MissingExtra: When a library is missing.
        ExportError: When onnxruntime is off by more than TOLERANCE. The file is not kept.
    """
    require("export", needed_by="writing and checking ONNX")
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    dynamic = {0: "batch"} if batch is None else {}
    if image_size is None:
        dynamic |= {2: "height", 3: "width"}
    with _whole_or_not_at_all(Path(destination)) as partial:
        program = torch.onnx.export(
            export_program(model, image_size, batch=batch, outputs=outputs),
            dynamo=True,
            input_names=["images"],
            output_names=list(NAMES[outputs]),
            dynamic_shapes=(dynamic,) if dynamic else None,
            verbose=False,
        )
        assert program is not None
        program.save(partial, external_data=weight_bytes > 0.9 * ONNX_LIMIT)
        return _check(model, _onnxruntime(partial), image_size, batch, outputs)


def _returning(model: ConvNeXtV2, outputs: Outputs) -> nn.Module:
    if outputs != "logits":
        return FeatureMaps(model, stages=outputs == "stages")
    if model.head is None:
        raise ValueError("an encoder without head has no logits; features or stages would work")
    return model


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})
    ]


@torch.no_grad()
def _check(
    model: ConvNeXtV2,
    exported: Run,
    image_size: tuple[int, int] | None,
    batch: int | None,
    outputs: Outputs,
) -> float:
    """The largest difference, over several batches and sizes where these are open."""
    expected = _returning(model, outputs)
    worst = 0.0
    for size in [image_size] if image_size else _sizes(model.stride):
        for number in [batch] if batch else [1, 3]:
            images = _noise(model, size, number)
            pairs = zip(_listed(exported(images)), _listed(expected(images)), strict=True)
            difference = max(float((theirs - ours).abs().max()) for theirs, ours in pairs)
            # Written so that NaN fails, too.
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"the exported model is off by {difference:.2g} on random images (batch "
                    f"{number}, {size[0]}x{size[1]}); at most {TOLERANCE:.0e} is accepted, "
                    "nothing was written"
                )
            worst = max(worst, difference)
    return worst


def _sizes(stride: int) -> list[tuple[int, int]]:
    """The smallest, a wide one, and one that is no multiple of the stride."""
    return [(2 * stride, 2 * stride), (3 * stride, 7 * stride), (5 * stride - 1, 2 * stride + 1)]


def _listed(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def _noise(model: ConvNeXtV2, image_size: tuple[int, int], batch: int) -> Tensor:
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, model.in_channels, *image_size, generator=generator).to(parameter)


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
        # The weights are moved first, so that they are there when the model appears.
        for path in sorted(room.iterdir(), key=lambda path: path.name == destination.name):
            sync(path)
            os.replace(path, destination.with_name(path.name))
        sync(destination.parent)
    finally:
        shutil.rmtree(room, ignore_errors=True)
