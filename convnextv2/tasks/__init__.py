"""Tasks: a module that turns a batch into a loss and metrics, so that the loop knows neither."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TaskOutput(NamedTuple):
    """loss: scalar to minimise; metrics: detached scalars to report.

    scores: (B, classes) in fp32, detached, of tasks that classify.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    scores: Tensor | None = None


class Normalize(nn.Module):
    """(B, H, W, C) uint8 to (B, C, H, W) in `dtype`, by ImageNet's mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        x = (images.float() - self.mean.float()) / self.std.float()
        return x.to(dtype).permute(0, 3, 1, 2)
