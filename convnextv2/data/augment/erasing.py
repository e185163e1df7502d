"""Random erasing (Zhong et al., 2020) with timm's modes: a rectangle becomes noise or a colour.

timm draws the noise after normalisation; here it is mean + std x normal of each channel in pixel
values. The one difference: it is rounded and cut to a byte, which 3% of the values feel. Such noise
has 256 values, so it is looked up: 16 random bits choose one, with its probability to 2^-16.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from convnextv2.data.augment.geometry import FILL
from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.randomness import Draw, random_bits, stream_bits, uniform

Mode = Literal["pixel", "rand", "const"]

FIRST = int(Draw.ERASING)
ATTEMPTS = 10
RECTANGLE = FIRST + 4
NOISE = RECTANGLE + 4 * ATTEMPTS
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CHOICES = 1 << 16


@dataclass(frozen=True)
class RandomErasing:
    """Erase one rectangle of an image, placed uniformly.

    Attributes:
        probability: That an image is erased at all.
        area: Bounds of the rectangle's share of the image.
        ratio: Bounds of its height / width, which is log-uniform.
        mode: "pixel": normal noise, of each pixel and channel its own; "rand": one colour of such
            noise; "const": ImageNet's mean colour, which is 0 to the network.

    Raises:
        ValueError: When one is out of range.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mode: Mode = "pixel"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability {self.probability} of erasing; expected 0 to 1")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area {self.area} of erasing; expected 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio} of erasing; expected 0 < smallest <= largest")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r} of erasing; expected {get_args(Mode)}")

    def operation(self, clock: Clock) -> InPlace:
        """The FFCV operation."""
        numbers = np.array([self.probability, *self.area, *np.log(self.ratio)])
        colors = quantiles()
        if self.mode == "const":
            colors[:] = np.array(FILL)[:, None]
        return InPlace(erase, clock, numbers, colors, self.mode == "pixel")


def quantiles() -> NDArray[np.uint8]:
    """Of each channel's noise as a byte, at the middles of `CHOICES` equal parts: (3, CHOICES)."""
    middles = (np.arange(CHOICES) + 0.5) / CHOICES
    edges = [
        [NormalDist(mean, std).cdf(value + 0.5) for value in range(255)]
        for mean, std in zip(MEAN, STD, strict=True)
    ]
    return np.stack([np.searchsorted(channel, middles) for channel in edges]).astype(np.uint8)


@njit(cache=True, nogil=True, parallel=True)
def erase(
    images: Any, indices: Any, clock: Any, numbers: Any, colors: Any, every_pixel: Any
) -> None:
    """Erase in a batch, in place; `colors` (3, CHOICES) are what a channel may become."""
    seed, epoch = clock
    for slot in prange(len(indices)):
        sample = np.uint64(indices[slot])
        if uniform(seed, epoch, sample, np.uint64(FIRST)) < numbers[0]:
            top, left, height, width = rectangle(
                seed, epoch, sample, images.shape[1], images.shape[2], numbers
            )
            key = random_bits(seed, epoch, sample, np.uint64(NOISE))
            fill(images[slot, top : top + height, left : left + width], key, colors, every_pixel)


@njit(cache=True, nogil=True)
def rectangle(
    seed: Any, epoch: Any, sample: Any, image_height: Any, image_width: Any, numbers: Any
) -> tuple[int, int, int, int]:
    """Top, left, height and width; of no size when nothing fitted."""
    area_low, area_high, log_low, log_high = numbers[1:]
    for attempt in range(ATTEMPTS):
        draw = RECTANGLE + 4 * attempt
        u_area = uniform(seed, epoch, sample, np.uint64(draw))
        u_ratio = uniform(seed, epoch, sample, np.uint64(draw + 1))
        area = (area_low + u_area * (area_high - area_low)) * image_height * image_width
        ratio = np.exp(log_low + u_ratio * (log_high - log_low))
        height, width = int(np.rint(np.sqrt(area * ratio))), int(np.rint(np.sqrt(area / ratio)))
        if height < image_height and width < image_width:
            u_top = uniform(seed, epoch, sample, np.uint64(draw + 2))
            u_left = uniform(seed, epoch, sample, np.uint64(draw + 3))
            top = int(u_top * (image_height - height + 1))
            left = int(u_left * (image_width - width + 1))
            return top, left, height, width
    return 0, 0, 0, 0


@njit(cache=True, nogil=True)
def fill(part: Any, key: Any, colors: Any, every_pixel: Any) -> None:
    """Colours for (H, W, 3): of 64 bits, 16 choose a channel's."""
    choice = np.uint64(CHOICES - 1)
    for y in range(part.shape[0]):
        for x in range(part.shape[1]):
            number = y * part.shape[1] + x if every_pixel else 0
            bits = stream_bits(key, np.uint64(number))
            part[y, x, 0] = colors[0, bits & choice]
            part[y, x, 1] = colors[1, (bits >> np.uint64(16)) & choice]
            part[y, x, 2] = colors[2, (bits >> np.uint64(32)) & choice]
