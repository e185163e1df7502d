"""mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019) of the two images of a pair.

The order keeps positions 2q and 2q + 1 together (`convnextv2.data.order`): the partner of an image,
its neighbour in the batch, is a function of (seed, epoch, sample), and so are kind and coefficient.
timm's default shares one coefficient among a batch, which depends on the number of workers; this is
its mode "elem". Pixels are mixed as bytes, rounded, as in timm's FastCollateMixup.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from convnextv2.data.augment.operation import Clock, InPlaceWithCoefficients
from convnextv2.randomness import Draw, uniform

FIRST = int(Draw.MIXING)
BETA = FIRST + 8


@dataclass(frozen=True)
class Mixing:
    """Alphas in (0, 1], 0 for none; with both, cutmix is chosen with `switch_probability`."""

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} alpha {getattr(self, name)}; expected 0 to 1")

    def operation(self, clock: Clock) -> InPlaceWithCoefficients:
        """The FFCV operation; it hands on (images, coefficients)."""
        switch = self.switch_probability if self.mixup and self.cutmix else float(self.cutmix > 0)
        numbers = np.array([self.mixup, self.cutmix, self.probability, switch])
        return InPlaceWithCoefficients(mix_pairs, clock, numbers)


@njit(cache=True, nogil=True, parallel=True)
def mix_pairs(images: Any, indices: Any, clock: Any, coefficients: Any, numbers: Any) -> None:
    """Mix rows 2q and 2q + 1 in place; `coefficients` (B,) get the share of the own image."""
    height, width = images.shape[1:3]
    for pair in prange(len(indices) // 2):
        one, other = 2 * pair, 2 * pair + 1
        share_1, box_1 = choose(clock, np.uint64(indices[one]), height, width, numbers)
        share_2, box_2 = choose(clock, np.uint64(indices[other]), height, width, numbers)
        blend_pair(images[one], images[other], share_1, box_1, share_2, box_2)
        coefficients[one], coefficients[other] = share_1, share_2


@njit(cache=True, nogil=True)
def choose(
    clock: Any, sample: Any, height: Any, width: Any, numbers: Any
) -> tuple[float, tuple[int, int, int, int]]:
    """Share of the own image, and the box (top, left, bottom, right) of cutmix; empty: mixup."""
    seed, epoch = clock
    mixup, cutmix, probability, switch = numbers
    if uniform(seed, epoch, sample, np.uint64(FIRST)) >= probability:
        return 1.0, (0, 0, 0, 0)
    if uniform(seed, epoch, sample, np.uint64(FIRST + 1)) >= switch:
        return symmetric_beta(seed, epoch, sample, mixup), (0, 0, 0, 0)
    side = np.sqrt(1.0 - symmetric_beta(seed, epoch, sample, cutmix))
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y = int(uniform(seed, epoch, sample, np.uint64(FIRST + 2)) * height)
    x = int(uniform(seed, epoch, sample, np.uint64(FIRST + 3)) * width)
    top, bottom = max(0, y - half_h), min(height, y + half_h)
    left, right = max(0, x - half_w), min(width, x + half_w)
    share = 1.0 - (bottom - top) * (right - left) / (height * width)
    return share, (top, left, bottom, right)


@njit(cache=True, nogil=True)
def blend_pair(one: Any, other: Any, share_1: Any, box_1: Any, share_2: Any, box_2: Any) -> None:
    """Both images of a pair at once, so that neither has to be copied."""
    for y in range(one.shape[0]):
        for x in range(one.shape[1]):
            for c in range(3):
                a, b = one[y, x, c], other[y, x, c]
                one[y, x, c] = mixed(a, b, share_1, box_1, y, x)
                other[y, x, c] = mixed(b, a, share_2, box_2, y, x)


@njit(cache=True, nogil=True)
def mixed(own: Any, partner: Any, share: Any, box: Any, y: Any, x: Any) -> Any:
    """A pixel's value."""
    top, left, bottom, right = box
    if bottom > top and right > left:
        return partner if top <= y < bottom and left <= x < right else own
    if share == 1.0:
        return own
    weight = np.float32(share)
    return np.uint8(np.rint(weight * own + (np.float32(1.0) - weight) * partner))


@njit(cache=True, nogil=True)
def symmetric_beta(seed: Any, epoch: Any, sample: Any, alpha: Any) -> float:
    """Beta(alpha, alpha) for alpha in (0, 1] (Jöhnk, 1964): exact, by rejection."""
    draw = BETA
    while True:
        u = uniform(seed, epoch, sample, np.uint64(draw)) ** (1.0 / alpha)
        v = uniform(seed, epoch, sample, np.uint64(draw + 1)) ** (1.0 / alpha)
        draw += 2
        if 0.0 < u + v <= 1.0:
            return u / (u + v)
