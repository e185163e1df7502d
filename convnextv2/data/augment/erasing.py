"""Random erasing (Zhong et al., 2020) with timm's mode "pixel": a rectangle becomes noise.

timm draws the noise after normalisation; here it is mean + std x normal of each channel in pixel
values. The one difference: it is rounded and cut to a byte, which 4% of the values feel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.randomness import Draw, mix, uniform

FIRST = int(Draw.ERASING)
ATTEMPTS = 10
NOISE = FIRST + 4 * ATTEMPTS + 8
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class RandomErasing:
    """Probability, bounds of the area's share, and of height / width (log-uniform)."""

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def operation(self, clock: Clock) -> InPlace:
        """The FFCV operation."""
        numbers = [self.probability, *self.area, *np.log(self.ratio)]
        return InPlace(erase, clock, np.array(numbers))


@njit(cache=True, nogil=True, parallel=True)
def erase(images: Any, indices: Any, clock: Any, numbers: Any) -> None:
    """Erase in a batch, in place."""
    for slot in prange(len(indices)):
        sample = np.uint64(indices[slot])
        if uniform(clock[0], clock[1], sample, np.uint64(FIRST)) < numbers[0]:
            top, left, height, width = rectangle(
                clock[0], clock[1], sample, images.shape[1], images.shape[2], numbers
            )
            fill(images[slot, top : top + height, left : left + width], clock, sample)


@njit(cache=True, nogil=True)
def rectangle(
    seed: Any, epoch: Any, sample: Any, image_height: Any, image_width: Any, numbers: Any
) -> tuple[int, int, int, int]:
    """Top, left, height and width; of no size when nothing fitted."""
    area_low, area_high, log_low, log_high = numbers[1:]
    for attempt in range(ATTEMPTS):
        draw = FIRST + 4 + 4 * attempt
        u_area = uniform(seed, epoch, sample, np.uint64(draw))
        u_ratio = uniform(seed, epoch, sample, np.uint64(draw + 1))
        area = (area_low + u_area * (area_high - area_low)) * image_height * image_width
        ratio = np.exp(log_low + u_ratio * (log_high - log_low))
        height, width = int(np.rint(np.sqrt(area * ratio))), int(np.rint(np.sqrt(area / ratio)))
        if height < image_height and width < image_width:
            u_top = uniform(seed, epoch, sample, np.uint64(draw + 2))
            u_left = uniform(seed, epoch, sample, np.uint64(draw + 3))
            top, left = (
                int(u_top * (image_height - height + 1)),
                int(u_left * (image_width - width + 1)),
            )
            return top, left, height, width
    return 0, 0, 0, 0


@njit(cache=True, nogil=True)
def fill(part: Any, clock: Any, sample: Any) -> None:
    """Noise for (H, W, 3): two normal numbers from two hashes (Box and Muller)."""
    key = mix(mix(clock[0] + np.uint64(NOISE)) ^ mix(clock[1] + np.uint64(1)) ^ mix(sample))
    counter = np.uint64(0)
    spare, has_spare = 0.0, False
    for y in range(part.shape[0]):
        for x in range(part.shape[1]):
            for c in range(3):
                if has_spare:
                    noise, has_spare = spare, False
                else:
                    u = (mix(key + counter) >> np.uint64(11)) * (1.0 / (1 << 53))
                    v = (mix(key + counter + np.uint64(1)) >> np.uint64(11)) * (1.0 / (1 << 53))
                    counter += np.uint64(2)
                    radius = np.sqrt(-2.0 * np.log(1.0 - u))
                    noise, spare = (
                        radius * np.cos(2.0 * np.pi * v),
                        radius * np.sin(2.0 * np.pi * v),
                    )
                    has_spare = True
                value = np.rint(MEAN[c] + STD[c] * noise)
                part[y, x, c] = np.uint8(min(255.0, max(0.0, value)))
