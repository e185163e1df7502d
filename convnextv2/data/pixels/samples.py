"""Values as a file holds them, and how values of more than 8 bits become colours.

Few files say how many bits of a 16-bit value are used: cameras and scanners deliver 10, 12 or 14,
and such an image would be nearly black if 16 were assumed. The rule is to take the depth that the
file declares (PNG's sBIT, TIFF's BitsPerSample or MaxSampleValue) if no value exceeds it, else the
smallest of `DEPTHS` that holds the largest value. Only the file itself is considered, so that an
image does not depend on others; an underexposed one of undeclared depth becomes brighter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import Pixels, RGBImage

DEPTHS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Samples:
    """Values of an image file, upright.

    Attributes:
        values: (H, W, channels), black 0.
        colours: How many of the channels, from the first, are a picture; all but alpha by default.
        alpha: Whether the last channel says how opaque the others are.
        premultiplied: Whether these are multiplied by it.
        declared_bits: Depth that the file tells, if it does.
    """

    values: Pixels
    colours: int | None = None
    alpha: bool = False
    premultiplied: bool = False
    declared_bits: int | None = None


def unsigned(values: NDArray[np.generic]) -> Pixels:
    """Numbers of any type as uint8 or uint16.

    Raises:
        ValueError: For fractions, whose range nothing tells, and numbers these cannot hold.
    """
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"its values are {values.dtype}, of no known range; write whole numbers of 8 or 16 bits"
        )
    if values.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high > 0xFFFF:
        raise ValueError(
            f"its values ({values.dtype}) go from {low} to {high}; 0 to 65535 would be read"
        )
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.uint16)


def depth(largest: int, declared: int | None = None) -> int:
    """Bits that values up to `largest` are taken to have."""
    if declared is not None and largest < 1 << declared:
        return max(DEPTHS[0], declared)
    return next(bits for bits in DEPTHS if largest < 1 << bits)


def to_rgb(samples: Samples) -> RGBImage:
    """Make colours of 8 bits: (H, W, 3), with what is transparent laid on white.

    Raises:
        ValueError: When they are neither grey nor RGB.
    """
    values = samples.values
    colours = values[..., : samples.colours or values.shape[2] - samples.alpha]
    if colours.shape[2] not in (1, 3):
        raise ValueError(
            f"{values.shape[2]} channels, which are no RGB; to train on them as they are, set "
            f"model.in_channels={values.shape[2]} (data write: --channels {values.shape[2]})"
        )
    # Multiplied by alpha, no colour may be bright.
    seen = values if samples.premultiplied else colours
    bits = depth(int(seen.max(initial=0)), samples.declared_bits)
    shades = (colours >> (bits - 8)).astype(np.uint8)
    if samples.alpha:
        shades = _on_white(shades, bits, values[..., -1:], samples.premultiplied)
    return np.ascontiguousarray(np.broadcast_to(shades, (*values.shape[:2], 3)))


def _on_white(shades: RGBImage, bits: int, alpha: Pixels, premultiplied: bool) -> RGBImage:
    opaque_bits = max(bits, depth(int(alpha.max(initial=0))))
    opacity = alpha / np.float32((1 << opaque_bits) - 1)
    laid = (shades if premultiplied else shades * opacity) + 255 * (1 - opacity)
    return np.clip(np.rint(laid), 0, 255).astype(np.uint8)
