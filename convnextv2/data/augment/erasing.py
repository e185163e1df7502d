"""Random erasing (Zhong et al., 2020) with timm's modes: a rectangle becomes noise or a colour.

timm draws the noise after normalisation; here it is mean + std x normal of each channel, in pixel
values. The only difference is that it is rounded and clipped to the range of a pixel, which
changes 3% of RGB's bytes. Noise is looked up in a table: 16 random bits choose a quantile.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.data.collection import Pixels
from convnextv2.data.ffcv_compat import njit, prange
from convnextv2.randomness import Draw, random_bits, stream_bits, uniform
from convnextv2.tasks import IMAGENET, Normalization

Mode = Literal["pixel", "rand", "const"]

FIRST = int(Draw.ERASING)
ATTEMPTS = 10
RECTANGLE = FIRST + 4
NOISE = RECTANGLE + 4 * ATTEMPTS
CHOICES = 1 << 16
PER_WORD = 4
"""Channel values per 64 random bits; each is chosen by 16 of them."""


@dataclass(frozen=True)
class RandomErasing:
    """Erase one rectangle of an image, placed uniformly.

    Attributes:
        probability: That an image is erased at all.
        area: Bounds of the rectangle's share of the image.
        ratio: Bounds of its height / width, which is log-uniform.
        mode: "pixel": normal noise, of each pixel and channel its own; "rand": one colour of such
            noise; "const": the mean colour, which is 0 to the network.

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

    def operation(self, clock: Clock, normalization: Normalization = IMAGENET) -> InPlace:
        """The FFCV operation, for images that are normalised like that."""
        numbers = np.array([self.probability, *self.area, *np.log(self.ratio)])
        colors = quantiles(normalization, constant=self.mode == "const")
        return InPlace(erase, clock, numbers, colors, self.mode == "pixel")


def quantiles(normalization: Normalization = IMAGENET, *, constant: bool = False) -> Pixels:
    """Quantiles of each channel's noise, at `CHOICES` equal steps: (channels, CHOICES)."""
    white = normalization.white
    mean, std = np.array(normalization.mean)[:, None], np.array(normalization.std)[:, None]
    normal = ndtri((np.arange(CHOICES) + 0.5) / CHOICES)
    values = np.rint((mean + std * (0 if constant else normal)) * white)
    dtype = np.uint8 if normalization.bits == 8 else np.uint16
    return np.broadcast_to(np.clip(values, 0, white), (len(mean), CHOICES)).astype(dtype)


@njit(cache=True, nogil=True, parallel=True)
def erase(
    images: Pixels,
    indices: NDArray[np.int64],
    clock: Clock,
    numbers: NDArray[np.float64],
    colors: Pixels,
    every_pixel: bool,
) -> None:
    """Erase in a batch, in place; `colors` (channels, CHOICES) are what a channel may become."""
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
    seed: np.uint64,
    epoch: np.uint64,
    sample: np.uint64,
    image_height: int,
    image_width: int,
    numbers: NDArray[np.float64],
) -> tuple[int, int, int, int]:
    """Top, left, height and width; zeros when no rectangle fitted in `ATTEMPTS` attempts."""
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
def fill(part: Pixels, key: np.uint64, colors: Pixels, every_pixel: bool) -> None:
    """Colours for (H, W, channels), four channels from every 64 bits."""
    choice = np.uint64(CHOICES - 1)
    channels = part.shape[2]
    count = (channels + PER_WORD - 1) // PER_WORD
    for y in range(part.shape[0]):
        for x in range(part.shape[1]):
            number = y * part.shape[1] + x if every_pixel else 0
            for word in range(count):
                bits = stream_bits(key, np.uint64(number * count + word))
                for c in range(PER_WORD * word, min(channels, PER_WORD * (word + 1))):
                    part[y, x, c] = colors[c, bits & choice]
                    bits >>= np.uint64(16)
