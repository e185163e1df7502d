"""Pillow's operations on the colours of one image (H, W, 3) uint8, in place, for compiled code.

They give the same bytes as Pillow's `ImageOps` and `ImageEnhance` (float32 blends, cut off, not
rounded) on the same arguments. Arithmetic is kept to 32 bits, which numba turns into vector code.
"""

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import RGBImage
from convnextv2.data.ffcv_compat import njit

Value = int | np.integer

ZERO, ONE, HALF, LARGEST = np.float32(0), np.float32(1), np.float32(0.5), np.float32(255)


@njit(cache=True, nogil=True)
def look_up(image: RGBImage, table: NDArray[np.uint8]) -> None:
    """Replace values by `table` (3, 256), one row per channel."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = table[c, image[y, x, c]]


@njit(cache=True, nogil=True)
def histogram(image: RGBImage) -> NDArray[np.int64]:
    """Counts (3, 256) of the values of each channel."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                counts[c, image[y, x, c]] += 1
    return counts


@njit(cache=True, nogil=True)
def autocontrast(image: RGBImage) -> None:
    """Stretch every channel to the whole range."""
    counts = histogram(image)
    table = np.empty((3, 256), np.uint8)
    for c in range(3):
        low, high = 0, 255
        while low < 255 and counts[c, low] == 0:
            low += 1
        while high > 0 and counts[c, high] == 0:
            high -= 1
        for value in range(256):
            if high <= low:
                table[c, value] = value
            else:
                scale = 255.0 / (high - low)
                table[c, value] = min(255, max(0, int(value * scale - low * scale)))
    look_up(image, table)


@njit(cache=True, nogil=True)
def equalize(image: RGBImage) -> None:
    """Give every channel a flat histogram."""
    counts = histogram(image)
    table = np.empty((3, 256), np.uint8)
    for c in range(3):
        last = 255
        while last > 0 and counts[c, last] == 0:
            last -= 1
        step = (counts[c].sum() - counts[c, last]) // 255
        total = step // 2
        for value in range(256):
            table[c, value] = value if step == 0 else min(255, total // step)
            total += counts[c, value]
    look_up(image, table)


@njit(cache=True, nogil=True)
def posterize(image: RGBImage, bits: int) -> None:
    """Keep the highest `bits` bits."""
    mask = np.uint8(256 - (1 << (8 - bits))) if bits > 0 else np.uint8(0)
    values = image.reshape(-1)
    for k in range(len(values)):
        values[k] &= mask


@njit(cache=True, nogil=True)
def solarize(image: RGBImage, threshold: int) -> None:
    """Invert values from `threshold` on; from 0 on is all of them."""
    values, bound = image.reshape(-1), np.int32(threshold)
    for k in range(len(values)):
        value = np.int32(values[k])
        values[k] = np.uint8(np.int32(255) - value if value >= bound else value)


@njit(cache=True, nogil=True)
def solarize_add(image: RGBImage, add: int) -> None:
    """Add to values below 128."""
    values, more = image.reshape(-1), np.int32(add)
    for k in range(len(values)):
        value = np.int32(values[k])
        values[k] = np.uint8(min(np.int32(255), value + more) if value < 128 else value)


@njit(cache=True, nogil=True)
def luminance(red: Value, green: Value, blue: Value) -> np.int32:
    """ITU-R 601-2 luma, in Pillow's fixed point."""
    weighted = (
        np.int32(red) * np.int32(19595)
        + np.int32(green) * np.int32(38470)
        + np.int32(blue) * np.int32(7471)
    )
    return (weighted + np.int32(0x8000)) >> np.int32(16)


@njit(cache=True, nogil=True)
def blend(base: Value, value: Value, factor: np.float32) -> np.uint8:
    """Blend: `base` at factor 0, `value` at 1, extrapolated beyond; clipped to a byte."""
    mixed = np.float32(base) + factor * np.float32(np.int32(value) - np.int32(base))
    return np.uint8(np.int32(min(LARGEST, max(ZERO, mixed))))


@njit(cache=True, nogil=True)
def brightness(image: RGBImage, factor: float) -> None:
    """Blend with black."""
    blend_with(image, 0, factor)


@njit(cache=True, nogil=True)
def contrast(image: RGBImage, factor: float) -> None:
    """Blend with the mean luminance."""
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += luminance(image[y, x, 0], image[y, x, 1], image[y, x, 2])
    blend_with(image, int(total / (image.shape[0] * image.shape[1]) + 0.5), factor)


@njit(cache=True, nogil=True)
def blend_with(image: RGBImage, grey: int, factor: float) -> None:
    """Blend with one grey value."""
    values, base, strength = image.reshape(-1), np.int32(grey), np.float32(factor)
    for k in range(len(values)):
        values[k] = blend(base, values[k], strength)


@njit(cache=True, nogil=True)
def saturation(image: RGBImage, factor: float) -> None:
    """Blend with the grey image (`ImageEnhance.Color`)."""
    strength = np.float32(factor)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            red, green, blue = image[y, x, 0], image[y, x, 1], image[y, x, 2]
            grey = luminance(red, green, blue)
            image[y, x, 0] = blend(grey, red, strength)
            image[y, x, 1] = blend(grey, green, strength)
            image[y, x, 2] = blend(grey, blue, strength)


@njit(cache=True, nogil=True)
def sharpness(image: RGBImage, factor: float) -> None:
    """Blend with the image smoothed by 3 x 3, whose border stays as it is."""
    source = image.copy()
    height, width = image.shape[:2]
    column = np.empty(3 * width, np.int32)
    for y in range(1, height - 1):
        above, line, below = (
            source[y - 1].reshape(-1),
            source[y].reshape(-1),
            source[y + 1].reshape(-1),
        )
        for k in range(3 * width):
            column[k] = np.int32(above[k]) + np.int32(line[k]) + np.int32(below[k])
        sharpen(
            line[3:-3], column[:-6], column[3:-3], column[6:], factor, image[y, 1:-1].reshape(-1)
        )


@njit(cache=True, nogil=True)
def sharpen(
    own: NDArray[np.uint8],
    left: NDArray[np.int32],
    middle: NDArray[np.int32],
    right: NDArray[np.int32],
    factor: float,
    out: NDArray[np.uint8],
) -> None:
    """Blend `own` with the smoothed row: sums of 3 columns, in which the own value has weight 5."""
    strength = np.float32(factor)
    for k in range(len(out)):
        total = left[k] + middle[k] + right[k] + np.int32(4) * np.int32(own[k])
        smooth = np.int32(np.float32(total) / np.float32(13) + HALF)
        out[k] = blend(smooth, own[k], strength)
