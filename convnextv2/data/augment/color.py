"""Colour jitter as torchvision's: brightness, contrast, saturation and hue, in a random order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.augment import pixels
from convnextv2.data.augment.hue import adjust_hue
from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.data.ffcv_compat import njit, prange
from convnextv2.randomness import Draw, uniform

ORDER = int(Draw.COLOR_JITTER)
FACTORS = ORDER + 8


@dataclass(frozen=True)
class ColorJitter:
    """Factors uniform in [max(0, 1 - strength), 1 + strength]; for hue, in [-hue, hue] of a turn.

    Raises:
        ValueError: When a strength is negative or hue above 1/2.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise ValueError(f"{self}: strengths are 0 or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue} of colour jitter; expected 0 to 0.5")

    def operation(self, clock: Clock) -> InPlace:
        """The FFCV operation."""
        strengths = np.array([self.brightness, self.contrast, self.saturation])
        low, high = np.maximum(0, 1 - strengths), 1 + strengths
        return InPlace(jitter, clock, np.append(low, -self.hue), np.append(high, self.hue))


@njit(cache=True, nogil=True, parallel=True)
def jitter(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    clock: Clock,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> None:
    """Jitter a batch in place; `low` and `high` (4,) bound the factors."""
    for slot in prange(len(indices)):
        sample = np.uint64(indices[slot])
        order = np.array([0, 1, 2, 3])
        for last in range(3, 0, -1):
            u = uniform(clock[0], clock[1], sample, np.uint64(ORDER + last))
            other = int(u * (last + 1))
            order[last], order[other] = order[other], order[last]
        for which in order:
            if low[which] == high[which]:
                continue
            u = uniform(clock[0], clock[1], sample, np.uint64(FACTORS + which))
            factor = low[which] + u * (high[which] - low[which])
            if which == 0:
                pixels.brightness(images[slot], factor)
            elif which == 1:
                pixels.contrast(images[slot], factor)
            elif which == 2:
                pixels.saturation(images[slot], factor)
            else:
                adjust_hue(images[slot], factor)
