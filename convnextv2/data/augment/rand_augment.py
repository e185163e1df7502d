"""RandAugment (Cubuk et al., 2020) as in timm's `rand-m9-mstd0.5-inc1`.

Two of fifteen operations are chosen per image, each applied with probability 0.5 at a magnitude
drawn around the given one; their strength grows with the magnitude.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.augment import geometry, pixels
from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.data.collection import RGBImage
from convnextv2.data.ffcv_compat import njit, prange
from convnextv2.randomness import Draw, normal, uniform

FIRST = int(Draw.RAND_AUGMENT)
DRAWS = 8
LAYERS = (int(Draw.ERASING) - FIRST) // DRAWS
PROBABILITY = 0.5
LARGEST = 10.0


class Op(IntEnum):
    """The operations, in timm's order."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    COLOR = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14


OPS = len(Op)
(AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD, COLOR, CONTRAST,
 BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y) = map(int, Op)  # fmt: skip


@dataclass(frozen=True)
class RandAugment:
    """Magnitude 0 to 10, its standard deviation, and the number of operations.

    Raises:
        ValueError: When one is out of range.
    """

    magnitude: float = 9.0
    std: float = 0.5
    layers: int = 2

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= LARGEST and self.std >= 0):
            raise ValueError(f"{self}: magnitude is 0 to {LARGEST:g}, std 0 or more")
        if not 1 <= self.layers <= LAYERS:
            raise ValueError(f"{self.layers} layers of RandAugment; expected 1 to {LAYERS}")

    def operation(self, clock: Clock) -> InPlace:
        """The FFCV operation."""
        return InPlace(rand_augment, clock, float(self.magnitude), float(self.std), self.layers)


@njit(cache=True, nogil=True, parallel=True)
def rand_augment(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    clock: Clock,
    magnitude: float,
    std: float,
    layers: int,
) -> None:
    """Augment a batch in place."""
    seed, epoch = clock
    for slot in prange(len(indices)):
        sample = np.uint64(indices[slot])
        for layer in range(layers):
            first = FIRST + DRAWS * layer
            if uniform(seed, epoch, sample, np.uint64(first)) > PROBABILITY:
                continue
            op = int(uniform(seed, epoch, sample, np.uint64(first + 1)) * OPS)
            level = float(magnitude + std * normal(seed, epoch, sample, np.uint64(first + 2)))
            level = min(LARGEST, max(0.0, level)) / LARGEST
            negative = uniform(seed, epoch, sample, np.uint64(first + 4)) < 0.5
            apply(images[slot], op, level, negative)


@njit(cache=True, nogil=True)
def apply(image: RGBImage, op: int, level: float, negative: bool) -> None:
    """Apply operation `op` at `level` in [0, 1] to (H, W, 3), in place."""
    sign = -1.0 if negative else 1.0
    enhance = max(0.1, 1.0 + sign * level * 0.9)
    height, width = image.shape[:2]
    columns = image.transpose(1, 0, 2)
    if op == AUTO_CONTRAST:
        pixels.autocontrast(image)
    elif op == EQUALIZE:
        pixels.equalize(image)
    elif op == INVERT:
        pixels.solarize(image, 0)
    elif op == ROTATE:
        geometry.rotate(image, sign * level * 30.0)
    elif op == POSTERIZE:
        pixels.posterize(image, 4 - int(level * 4))
    elif op == SOLARIZE:
        pixels.solarize(image, 256 - min(256, int(level * 256)))
    elif op == SOLARIZE_ADD:
        pixels.solarize_add(image, min(128, int(level * 110)))
    elif op == COLOR:
        pixels.saturation(image, enhance)
    elif op == CONTRAST:
        pixels.contrast(image, enhance)
    elif op == BRIGHTNESS:
        pixels.brightness(image, enhance)
    elif op == SHARPNESS:
        pixels.sharpness(image, enhance)
    elif op == SHEAR_X:
        geometry.slide_rows(image, sign * level * 0.3, 0.0)
    elif op == SHEAR_Y:
        geometry.slide_rows(columns, sign * level * 0.3, 0.0)
    elif op == TRANSLATE_X:
        geometry.slide_rows(image, 0.0, sign * level * 0.45 * width)
    elif op == TRANSLATE_Y:
        geometry.slide_rows(columns, 0.0, sign * level * 0.45 * height)
