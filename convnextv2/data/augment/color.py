"""Colour jitter as torchvision's: brightness, contrast and saturation, in a random order."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.data.augment.pixels import brightness, contrast, saturation
from convnextv2.randomness import Draw, uniform

FIRST = int(Draw.COLOR_JITTER)


@dataclass(frozen=True)
class ColorJitter:
    """Each factor is uniform in [max(0, 1 - strength), 1 + strength]."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def operation(self, clock: Clock) -> InPlace:
        """The FFCV operation."""
        strengths = np.array([self.brightness, self.contrast, self.saturation])
        return InPlace(jitter, clock, strengths)


@njit(cache=True, nogil=True, parallel=True)
def jitter(images: Any, indices: Any, clock: Any, strengths: Any) -> None:
    """Jitter a batch in place."""
    for slot in prange(len(indices)):
        sample = np.uint64(indices[slot])
        order = np.array([0, 1, 2])
        for last in range(2, 0, -1):
            u = uniform(clock[0], clock[1], sample, np.uint64(FIRST + last))
            other = int(u * (last + 1))
            order[last], order[other] = order[other], order[last]
        for which in order:
            strength = strengths[which]
            if strength == 0.0:
                continue
            low = max(0.0, 1.0 - strength)
            u = uniform(clock[0], clock[1], sample, np.uint64(FIRST + 8 + which))
            factor = low + u * (1.0 + strength - low)
            if which == 0:
                brightness(images[slot], factor)
            elif which == 1:
                contrast(images[slot], factor)
            else:
                saturation(images[slot], factor)
