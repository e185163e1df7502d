"""From a checkpoint to the file that the next stage, and anybody else, starts from.

One safetensors file with the model's own weights in fp32, made from a checkpoint of any number of
workers and any ZeRO stage, a megabyte at a time, without an engine, a group or a GPU. The
same weights make the same file, byte for byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster import durable
from cluster.checkpoint.fragment_files import StateFiles, as_bytes, header
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT
from convnextv2.durable import atomically

PREFIX = "model."  # Of the model's parameters in the task around it.
# Elements read at a time, 1 MB: more is no faster, and malloc keeps more of the freed memory.
ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Consolidated:
    """A file that was written."""

    file: Path
    tensors: int
    parameters: int
    bytes: int


def consolidate(
    checkpoint: Path,
    target: Path,
    kind: str = WEIGHT,
    *,
    metadata: dict[str, str] | None = None,
) -> Consolidated:
    """Write a checkpoint's fp32 weights, or their EMA (`EMA_WEIGHT`), as one file, whole or not.

    `metadata` are entries for the file's own metadata (see `convnextv2.weights.metadata`).
    Parameters that are not trained have no EMA: theirs are the weights. The checkpoint is
    not verified here.

    Raises:
        ValueError: When the checkpoint does not hold them all.
    """
    files = StateFiles(checkpoint)
    names = sorted(name for name in files if name.startswith(PREFIX))
    if not names:
        raise ValueError(f"{checkpoint} holds no weights of a model")
    if not any(kind in files.kinds[name] for name in names):
        ema = "EMA of the weights: it is of a training without ema_decay"
        what = ema if kind == EMA_WEIGHT else f"{kind} of the weights"
        raise ValueError(f"{checkpoint} holds no {what}")
    shapes = {name.removeprefix(PREFIX): files.shapes[name] for name in names}
    with atomically(target) as partial:
        written = durable.write(partial, _parts(files, shapes, kind, metadata))
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    return Consolidated(target, len(shapes), parameters, written.bytes)


def _parts(
    files: StateFiles,
    shapes: dict[str, tuple[int, ...]],
    kind: str,
    metadata: dict[str, str] | None,
) -> Iterator[bytes | memoryview]:
    """The file from its beginning to its end."""
    yield header(shapes, metadata)
    for own_name, shape in shapes.items():
        name = PREFIX + own_name
        there = kind if kind in files.kinds[name] else WEIGHT
        numel = torch.Size(shape).numel()
        for start in range(0, numel, ELEMENTS):
            yield as_bytes(files.read(there, name, start, min(ELEMENTS, numel - start)))
