"""mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019) of the two images of a pair.

The order keeps positions 2q and 2q + 1 together (`convnextv2.data.order`). So the partner of an
image, its neighbour in the batch, is a function of (seed, epoch, sample), and so are kind and
coefficient. timm's default uses one coefficient for a whole batch, which would make it depend on
the number of workers; this is timm's mode "elem". Pixels are mixed as bytes, rounded, as in timm's
FastCollateMixup.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.augment.operation import Clock, InPlaceWithCoefficients
from convnextv2.data.collection import Pixels
from convnextv2.data.ffcv_compat import njit, prange
from convnextv2.randomness import Draw, symmetric_beta, uniform

FIRST = int(Draw.MIXING)
SHARE = FIRST + 8


@dataclass(frozen=True)
class Mixing:
    """Alphas of the coefficients' Beta(alpha, alpha), 0 for a kind that is not wanted.

    Attributes:
        mixup: Alpha of mixup.
        cutmix: Alpha of cutmix.
        probability: That an image is mixed at all.
        switch_probability: Probability of cutmix where both are wanted.

    Raises:
        ValueError: When one is out of range, or nothing is wanted.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or self.mixup == self.cutmix == 0:
            raise ValueError(
                f"mixup alpha {self.mixup}, cutmix alpha {self.cutmix}; expected 0 or more, and"
                " not both 0: leave mixing out instead"
            )
        if not (0 <= self.probability <= 1 and 0 <= self.switch_probability <= 1):
            raise ValueError(f"{self}: probabilities are 0 to 1")

    def operation(self, clock: Clock) -> InPlaceWithCoefficients:
        """The FFCV operation; it hands on (images, coefficients)."""
        switch = self.switch_probability if self.mixup and self.cutmix else float(self.cutmix > 0)
        numbers = np.array([self.mixup, self.cutmix, self.probability, switch])
        return InPlaceWithCoefficients(mix_pairs, clock, numbers)


@njit(cache=True, nogil=True, parallel=True)
def mix_pairs(
    images: Pixels,
    indices: NDArray[np.int64],
    clock: Clock,
    coefficients: NDArray[np.float32],
    numbers: NDArray[np.float64],
) -> None:
    """Mix rows 2q and 2q + 1 in place; `coefficients` (B,) get the fraction of the own image."""
    for pair in prange(len(indices) // 2):
        one, other = 2 * pair, 2 * pair + 1
        before = images[one].copy()
        coefficients[one] = mix_in(images[one], images[other], clock, indices[one], numbers)
        coefficients[other] = mix_in(images[other], before, clock, indices[other], numbers)


@njit(cache=True, nogil=True)
def mix_in(
    own: Pixels, partner: Pixels, clock: Clock, index: np.int64, numbers: NDArray[np.float64]
) -> float:
    """Mix `partner` into `own` (H, W, channels) in place; return the fraction of `own`."""
    fraction, box = choose(clock, np.uint64(index), own.shape[0], own.shape[1], numbers)
    top, left, bottom, right = box
    if top < bottom and left < right:
        for y in range(top, bottom):
            for x in range(left, right):
                for c in range(own.shape[2]):
                    own[y, x, c] = partner[y, x, c]
    elif fraction < 1.0:
        blend(own.reshape(-1), partner.reshape(-1), np.float32(fraction))
    return fraction


@njit(cache=True, nogil=True)
def choose(
    clock: Clock, sample: np.uint64, height: int, width: int, numbers: NDArray[np.float64]
) -> tuple[float, tuple[int, int, int, int]]:
    """Fraction of the own image, and cutmix's box (top, left, bottom, right); empty for mixup."""
    seed, epoch = clock
    mixup, cutmix, probability, switch = numbers
    if uniform(seed, epoch, sample, np.uint64(FIRST)) >= probability:
        return 1.0, (0, 0, 0, 0)
    if uniform(seed, epoch, sample, np.uint64(FIRST + 1)) >= switch:
        share = float(symmetric_beta(seed, epoch, sample, np.uint64(SHARE), mixup))
        return share, (0, 0, 0, 0)
    side = np.sqrt(1.0 - symmetric_beta(seed, epoch, sample, np.uint64(SHARE), cutmix))
    tall, wide = int(height * side), int(width * side)
    y = int(uniform(seed, epoch, sample, np.uint64(FIRST + 2)) * height)
    x = int(uniform(seed, epoch, sample, np.uint64(FIRST + 3)) * width)
    top, bottom = max(0, y - tall // 2), min(height, y + (tall + 1) // 2)
    left, right = max(0, x - wide // 2), min(width, x + (wide + 1) // 2)
    fraction = 1.0 - (bottom - top) * (right - left) / (height * width)
    return fraction, (top, left, bottom, right)


@njit(cache=True, nogil=True)
def blend(own: Pixels, partner: Pixels, fraction: np.float32) -> None:
    """Weighted mean of values, rounded, into `own`."""
    rest = np.float32(1.0) - fraction
    for k in range(len(own)):
        mean = fraction * np.float32(own[k]) + rest * np.float32(partner[k])
        own[k] = np.int32(np.rint(mean))
