"""Mean and standard deviation of the channels of a collection.

Sums are integers, so that the result does not depend on the order in which images are added, nor on
how they are distributed to workers.
"""

from dataclasses import dataclass
from math import sqrt
from operator import add
from typing import Self

import numpy as np

from convnextv2.data.collection import Pixels
from convnextv2.tasks import Normalization


@dataclass(frozen=True)
class ChannelSums:
    """How many pixels there were, the sums of their values by channel, and those of the squares."""

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, values: Pixels) -> Self:
        """Count an image (H, W, channels)."""
        flat = values.reshape(-1, values.shape[2]).astype(np.uint64)
        return cls(
            len(flat),
            tuple(flat.sum(axis=0).tolist()),
            tuple(np.einsum("pc,pc->c", flat, flat).tolist()),
        )

    @classmethod
    def none(cls, channels: int) -> Self:
        """The sums of no image."""
        return cls(0, (0,) * channels, (0,) * channels)

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.pixels + other.pixels,
            tuple(map(add, self.sums, other.sums)),
            tuple(map(add, self.squares, other.squares)),
        )

    def normalization(self, bits: int) -> Normalization:
        """Mean and deviation for values of `bits`; a constant channel has the deviation 1."""
        white, count = (1 << bits) - 1, self.pixels
        # The numerator is exact: large values of little variation lose no digits.
        variances = [
            (count * square - total * total) / (count * white) ** 2
            for total, square in zip(self.sums, self.squares, strict=True)
        ]
        mean = tuple(total / (count * white) for total in self.sums)
        return Normalization(mean, tuple(sqrt(v) if v else 1.0 for v in variances), bits)
