"""Tasks: modules that turn a batch into a loss and metrics, so that the loop needs no details."""

from typing import NamedTuple

from torch import Tensor

from convnextv2.tasks.normalization import (
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalization,
    Normalize,
)

__all__ = [
    "IMAGENET",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Normalization",
    "Normalize",
    "TaskOutput",
]


class TaskOutput(NamedTuple):
    """loss: scalar to minimise; metrics: detached scalars to report.

    scores: (B, classes) in fp32, detached, of tasks that classify.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    scores: Tensor | None = None
