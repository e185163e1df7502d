"""Normalisation of images by mean and standard deviation, on the device that trains on them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization(NamedTuple):
    """Mean and standard deviation by channel, for values of `bits` (8 or 16) scaled to 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bits: int = 8

    @property
    def white(self) -> int:
        """The largest value as it is stored."""
        return (1 << self.bits) - 1


IMAGENET = Normalization(IMAGENET_MEAN, IMAGENET_STD)
"""Used for all RGB images of 8 bits, because published weights expect it."""


class Normalize(nn.Module):
    """(B, H, W, C) uint8 or uint16 to (B, C, H, W) in `dtype`."""

    def __init__(self, by: Normalization = IMAGENET) -> None:
        super().__init__()
        self.white = by.white
        self.register_buffer("mean", torch.tensor(by.mean) * by.white, persistent=False)
        self.register_buffer("std", torch.tensor(by.std) * by.white, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        # Two passes over the pixels: the first reads bytes, the second writes `dtype`. CUDA may not
        # mix uint16 with floats.
        pixels = images if images.dtype == torch.uint8 else images.float()
        centred = torch.sub(pixels, self.mean.float())
        out = torch.empty_like(centred, dtype=dtype)
        return torch.div(centred, self.std.float(), out=out).permute(0, 3, 1, 2)
