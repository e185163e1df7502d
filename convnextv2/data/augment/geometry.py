"""Shear, translation and rotation of one image (H, W, 3) uint8, in place, for compiled code.

The pixels of Pillow's `Image.transform` with its bicubic filter (Keys' kernel with a = -1, border
pixels repeated, `FILL` outside the image), except that sums are in float32, not float64: one value
in some thousands differs, by one. Code works in passes over whole rows because numba vectorises
only plain loops over arrays.
"""

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import RGBImage
from convnextv2.data.ffcv_compat import njit

Weights = tuple[np.float32, np.float32, np.float32, np.float32]

FILL = (124, 116, 104)
"""ImageNet's mean colour."""
TINY = np.float32(2e-4)
"""Added before truncation to a byte: rounded weights may add up to slightly less than one."""


@njit(cache=True, nogil=True)
def slide_rows(image: RGBImage, slope: float, offset: float) -> None:
    """Pixel (x, y) comes from (x + slope (y + 1/2) + offset, y); transpose to slide columns."""
    height, width = image.shape[:2]
    line, moved = np.empty(3 * (width + 4), np.float32), np.empty(3 * width, np.float32)
    for y in range(height):
        for x in range(width):
            for c in range(3):
                line[6 + 3 * x + c] = image[y, x, c]
        for c in range(3):
            line[c] = line[3 + c] = line[6 + c]
            line[3 * width + 6 + c] = line[3 * width + 9 + c] = line[3 * width + 3 + c]
        shift = slope * (y + 0.5) + offset
        whole = int(np.floor(shift))
        # Positions whose origin x + 1/2 + shift lies in [0, width).
        first = max(0, int(np.ceil(-0.5 - shift)))
        end = min(width, int(np.ceil(width - 0.5 - shift)))
        if first < end:
            weigh(line[3 * (first + whole + 1) :], cubic(shift - whole), moved[: 3 * (end - first)])
        for x in range(width):
            if first <= x < end:
                for c in range(3):
                    image[y, x, c] = byte(moved[3 * (x - first) + c])
            else:
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = FILL


@njit(cache=True, nogil=True)
def weigh(line: NDArray[np.float32], weights: Weights, out: NDArray[np.float32]) -> None:
    """Every value of `out` is a weighted sum of those at the same place of four pixels."""
    count = len(out)
    a, b, c, d = line[:count], line[3 : count + 3], line[6 : count + 6], line[9 : count + 9]
    w_a, w_b, w_c, w_d = weights
    for k in range(count):
        out[k] = w_a * a[k] + w_b * b[k] + w_c * c[k] + w_d * d[k]


@njit(cache=True, nogil=True)
def rotate(image: RGBImage, degrees: float) -> None:
    """Turn counter-clockwise about the centre."""
    height, width = image.shape[:2]
    angle = -np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    middle_x, middle_y = width / 2.0, height / 2.0
    frame = packed(image)
    taps = np.empty((16, width), np.int32)
    across, down = np.empty((4, width), np.float32), np.empty((4, width), np.float32)
    sums = np.empty((3, width), np.float32)
    for y in range(height):
        first, end = width, 0
        for x in range(width):
            from_x = cos * (x + 0.5 - middle_x) + sin * (y + 0.5 - middle_y) + middle_x
            from_y = cos * (y + 0.5 - middle_y) - sin * (x + 0.5 - middle_x) + middle_y
            if 0.0 <= from_x < width and 0.0 <= from_y < height:
                first, end = min(first, x), x + 1
            else:
                from_x = from_y = 0.0
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = FILL
            gather(frame, from_x, from_y, x, taps, across, down)
        sums[:] = 0.0
        for row in range(4):
            for column in range(4):
                for c in range(3):
                    add(sums[c], down[row], across[column], taps[4 * row + column], np.int32(8 * c))
        for x in range(first, end):
            for c in range(3):
                image[y, x, c] = byte(sums[c, x])


@njit(cache=True, nogil=True)
def packed(image: RGBImage) -> NDArray[np.int32]:
    """Pixels as one integer each, with two more on every side, those of the border again."""
    height, width = image.shape[:2]
    frame = np.empty((height + 4, width + 4), np.int32)
    for y in range(height + 4):
        for x in range(width + 4):
            pixel = image[min(height - 1, max(0, y - 2)), min(width - 1, max(0, x - 2))]
            frame[y, x] = np.int32(pixel[0]) | np.int32(pixel[1]) << 8 | np.int32(pixel[2]) << 16
    return frame


@njit(cache=True, nogil=True)
def gather(
    frame: NDArray[np.int32],
    from_x: float,
    from_y: float,
    x: int,
    taps: NDArray[np.int32],
    across: NDArray[np.float32],
    down: NDArray[np.float32],
) -> None:
    """Put the 16 pixels around a place, and their weights, into column `x` of the tables."""
    left, top = int(from_x + 1.5), int(from_y + 1.5)
    across[0, x], across[1, x], across[2, x], across[3, x] = cubic(from_x + 1.5 - left)
    down[0, x], down[1, x], down[2, x], down[3, x] = cubic(from_y + 1.5 - top)
    for row in range(4):
        for column in range(4):
            # Unsigned: numba need not look for indices that count from the end.
            taps[4 * row + column, x] = frame[
                np.uint64(top - 1 + row), np.uint64(left - 1 + column)
            ]


@njit(cache=True, nogil=True)
def add(
    sums: NDArray[np.float32],
    down: NDArray[np.float32],
    across: NDArray[np.float32],
    pixels: NDArray[np.int32],
    shift: np.int32,
) -> None:
    """Add one tap of one channel, for a row of pixels."""
    for x in range(len(sums)):
        value = np.float32((pixels[x] >> shift) & np.int32(255))
        sums[x] += down[x] * across[x] * value


@njit(cache=True, nogil=True)
def cubic(distance: float) -> Weights:
    """Weights of four neighbours, the second of which is `distance` away."""
    t, one, two = np.float32(distance), np.float32(1), np.float32(2)
    return (
        t * (t * (two - t) - one),
        t * t * (t - two) + one,
        t * (t * (one - t) + one),
        t * t * (t - one),
    )


@njit(cache=True, nogil=True)
def byte(value: np.float32) -> np.uint8:
    """Cut off, as Pillow does it."""
    return np.uint8(np.int32(min(np.float32(255), max(np.float32(0), value + TINY))))
