"""torchvision's change of hue, through Pillow's HSV, of one image (H, W, 3) uint8, in place.

It gives the same bytes as `torchvision.transforms.functional.adjust_hue` on a Pillow image.
"""

import numpy as np

from convnextv2.data.augment.pixels import Value
from convnextv2.data.collection import RGBImage
from convnextv2.data.ffcv_compat import njit


@njit(cache=True, nogil=True)
def adjust_hue(image: RGBImage, factor: float) -> None:
    """Turn the colour circle by `factor` of a full turn."""
    turn = int(factor * 255)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            angle, saturation, value = to_hsv(image[y, x, 0], image[y, x, 1], image[y, x, 2])
            red, green, blue = from_hsv((angle + turn) & 255, saturation, value)
            image[y, x, 0], image[y, x, 1], image[y, x, 2] = red, green, blue


@njit(cache=True, nogil=True)
def to_hsv(red: Value, green: Value, blue: Value) -> tuple[int, int, int]:
    """Hue, saturation and value, a byte each, in the precisions in which Pillow computes them."""
    r, g, b = int(red), int(green), int(blue)
    high, low = max(r, g, b), min(r, g, b)
    if high == low:
        return 0, 0, high
    span = np.float32(high - low)
    to_r = np.float32(high - r) / span
    to_g = np.float32(high - g) / span
    to_b = np.float32(high - b) / span
    if r == high:
        sixths = to_b - to_g
    elif g == high:
        sixths = np.float32(2.0 + to_r - to_b)
    else:
        sixths = np.float32(4.0 + to_g - to_r)
    turn = np.float64(sixths) / 6.0 + 1.0
    turn = np.float64(np.float32(turn - 1.0 if turn >= 1.0 else turn))
    saturation = span / np.float32(high)
    return int(turn * 255.0), int(np.float64(saturation) * 255.0), high


@njit(cache=True, nogil=True)
def from_hsv(angle: int, saturation: int, value: int) -> tuple[int, int, int]:
    """Red, green and blue."""
    if saturation == 0:
        return value, value, value
    sixths = angle * 6.0 / 255.0
    sector = int(sixths)
    part, vivid = (
        np.float64(np.float32(sixths - sector)),
        np.float64(np.float32(saturation / 255.0)),
    )
    low = int(np.floor(value * (1.0 - vivid) + 0.5))
    falling = int(np.floor(value * (1.0 - vivid * part) + 0.5))
    rising = int(np.floor(value * (1.0 - vivid * (1.0 - part)) + 0.5))
    sector %= 6
    if sector == 0:
        return value, rising, low
    if sector == 1:
        return falling, value, low
    if sector == 2:
        return low, value, rising
    if sector == 3:
        return low, falling, value
    if sector == 4:
        return rising, low, value
    return value, low, falling
