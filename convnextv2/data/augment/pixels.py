"""Pillow's image operations on one image (H, W, 3) uint8, in place, for compiled code.

Same results as Pillow's on the same arguments: `ImageOps`, `ImageEnhance` (float32 blends, cut off
not rounded) and `Image.transform` with bicubic filter (Keys' kernel with a = -1).
"""

from typing import Any

import numpy as np
from numba import njit

FILL = (124, 116, 104)
"""ImageNet's mean colour, for what a transform moves in from outside."""
TINY = 1e-9
"""Sums of weights that are one but for their last bit must not cut a byte down by one."""


@njit(cache=True, nogil=True)
def look_up(image: Any, table: Any) -> None:
    """Replace values by `table` (3, 256), one row per channel."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = table[c, image[y, x, c]]


@njit(cache=True, nogil=True)
def histogram(image: Any) -> Any:
    """Counts (3, 256) of the values of each channel."""
    counts = np.zeros((3, 256), np.int64)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                counts[c, image[y, x, c]] += 1
    return counts


@njit(cache=True, nogil=True)
def autocontrast(image: Any) -> None:
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
def equalize(image: Any) -> None:
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
def invert(image: Any) -> None:
    """255 - value."""
    solarize(image, 0)


@njit(cache=True, nogil=True)
def posterize(image: Any, bits: Any) -> None:
    """Keep the highest `bits` bits."""
    mask = np.uint8(256 - (1 << (8 - bits))) if bits > 0 else np.uint8(0)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] &= mask


@njit(cache=True, nogil=True)
def solarize(image: Any, threshold: Any) -> None:
    """Invert values from `threshold` on."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                if image[y, x, c] >= threshold:
                    image[y, x, c] = 255 - image[y, x, c]


@njit(cache=True, nogil=True)
def solarize_add(image: Any, add: Any) -> None:
    """Add to values below 128."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                if image[y, x, c] < 128:
                    image[y, x, c] = min(255, image[y, x, c] + add)


@njit(cache=True, nogil=True)
def luminance(red: Any, green: Any, blue: Any) -> Any:
    """ITU-R 601-2 luma, in Pillow's fixed point."""
    weighted = np.int64(red) * 19595 + np.int64(green) * 38470 + np.int64(blue) * 7471
    return (weighted + 0x8000) >> 16


@njit(cache=True, nogil=True)
def blend(base: Any, value: Any, factor: Any) -> int:
    """From `base` (0) over `value` (1) beyond it, cut off to a byte."""
    mixed = np.float32(base) + np.float32(factor) * np.float32(np.int64(value) - np.int64(base))
    return int(min(np.float32(255), max(np.float32(0), mixed)))


@njit(cache=True, nogil=True)
def brightness(image: Any, factor: Any) -> None:
    """Blend with black."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = blend(0, image[y, x, c], factor)


@njit(cache=True, nogil=True)
def contrast(image: Any, factor: Any) -> None:
    """Blend with the mean luminance."""
    total = 0
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            total += luminance(image[y, x, 0], image[y, x, 1], image[y, x, 2])
    mean = int(total / (image.shape[0] * image.shape[1]) + 0.5)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            for c in range(3):
                image[y, x, c] = blend(mean, image[y, x, c], factor)


@njit(cache=True, nogil=True)
def saturation(image: Any, factor: Any) -> None:
    """Blend with the grey image (`ImageEnhance.Color`)."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            grey = luminance(image[y, x, 0], image[y, x, 1], image[y, x, 2])
            for c in range(3):
                image[y, x, c] = blend(grey, image[y, x, c], factor)


@njit(cache=True, nogil=True)
def sharpness(image: Any, factor: Any) -> None:
    """Blend with the image smoothed by 3 x 3, whose border stays as it is."""
    source = image.copy()
    height, width = image.shape[:2]
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            for c in range(3):
                total = np.int64(4) * source[y, x, c]
                for dy in range(-1, 2):
                    for dx in range(-1, 2):
                        total += source[y + dy, x + dx, c]
                smooth = int(np.float32(total) / np.float32(13) + np.float32(0.5))
                image[y, x, c] = blend(smooth, source[y, x, c], factor)


@njit(cache=True, nogil=True)
def affine(image: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> None:
    """Pixel (x, y) comes from (a x + b y + c, d x + e y + f); what lies outside is `FILL`."""
    height, width = image.shape[:2]
    # Pixels past the border repeat it: with a frame of two, no tap has to look where it is.
    source = framed(image)
    across, down = np.empty(4), np.empty(4)
    for y in range(height):
        for x in range(width):
            from_x = a * (x + 0.5) + b * (y + 0.5) + c
            from_y = d * (x + 0.5) + e * (y + 0.5) + f
            if not (0.0 <= from_x < width and 0.0 <= from_y < height):
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = FILL
                continue
            left, top = int(from_x + 1.5), int(from_y + 1.5)
            cubic_weights(from_x + 1.5 - left, across)
            cubic_weights(from_y + 1.5 - top, down)
            red = green = blue = 0.0
            for row in range(4):
                r = g = u = 0.0
                for tap in range(4):
                    pixel = source[top - 1 + row, left - 1 + tap]
                    r += across[tap] * pixel[0]
                    g += across[tap] * pixel[1]
                    u += across[tap] * pixel[2]
                red += down[row] * r
                green += down[row] * g
                blue += down[row] * u
            image[y, x, 0] = int(min(255.0, max(0.0, red + TINY)))
            image[y, x, 1] = int(min(255.0, max(0.0, green + TINY)))
            image[y, x, 2] = int(min(255.0, max(0.0, blue + TINY)))


@njit(cache=True, nogil=True)
def framed(image: Any) -> Any:
    """A copy with two more pixels on every side, those of the border again."""
    height, width = image.shape[:2]
    frame = np.empty((height + 4, width + 4, 3), np.uint8)
    frame[2 : height + 2, 2 : width + 2] = image
    for side in range(2):
        frame[2 : height + 2, side] = image[:, 0]
        frame[2 : height + 2, width + 2 + side] = image[:, width - 1]
    for side in range(2):
        frame[side] = frame[2]
        frame[height + 2 + side] = frame[height + 1]
    return frame


@njit(cache=True, nogil=True)
def cubic_weights(distance: Any, weights: Any) -> None:
    """Of four neighbours, the second of which is `distance` away."""
    t = distance
    weights[0] = t * (-1.0 + t * (2.0 - t))
    weights[1] = 1.0 + t * t * (-2.0 + t)
    weights[2] = t * (1.0 + t * (1.0 - t))
    weights[3] = t * t * (-1.0 + t)
