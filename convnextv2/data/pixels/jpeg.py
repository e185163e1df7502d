"""JPEG: which files may be stored as they are, how others are decoded, and which are rare."""

import struct
import warnings

import numpy as np
from PIL import Image

from convnextv2.data.collection import RGBImage
from convnextv2.data.pixels import turbojpeg
from convnextv2.data.pixels.opening import open_image, orientation_of

_BASELINE_OR_PROGRESSIVE = (0xC0, 0xC1, 0xC2)
_ARITHMETIC, _LOSSLESS = range(0xC9, 0xD0), (0xC3, 0xC7, 0xCB, 0xCF)
_HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
LONGEST_SIDE = 65_500
"""Of libjpeg-turbo, which neither encodes nor decodes more; the format itself ends at 65,535."""


def passes_through(content: bytes, max_resolution: int | None) -> tuple[int, int] | None:
    """(height, width) of a JPEG that every reader of .beton files shows as it should be, or None.

    Such a file may be stored byte for byte: baseline or progressive, YCbCr or grey, not rotated
    by its EXIF data, no side longer than `max_resolution`, and decoded without a warning.
    """
    frame = _frame(content)
    if frame is None or frame[0] not in _BASELINE_OR_PROGRESSIVE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(content, "JPEG") as image:
                width, height = image.size
                if max(width, height) > min(max_resolution or LONGEST_SIDE, LONGEST_SIDE):
                    return None
                if orientation_of(image) != 1:
                    return None
        if turbojpeg.colour_space(content) not in (turbojpeg.YCBCR, turbojpeg.GREY):
            return None
        turbojpeg.decompress(content, height, width, 3)
    except Exception:  # `decode` will meet the same error and report it.
        return None
    return height, width


def pixels(content: bytes, image: Image.Image) -> RGBImage:
    """Decode the file that `image` is opened from."""
    width, height = image.size
    if image.mode != "CMYK":
        return turbojpeg.decompress(content, height, width, 3)
    # CMYK JPEGs hold ink inverted: Adobe's convention, which all follow.
    inks = 255 - turbojpeg.decompress(content, height, width, 4)
    return np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))


def kind_of(content: bytes) -> str | None:
    """The rare features because of which few programs read the file; None for ordinary ones."""
    frame = _frame(content)
    if frame is None:
        return None
    marker, bits = frame
    oddities = [f"{bits} bits a sample"] if bits != 8 else []
    oddities += ["lossless"] if marker in _LOSSLESS else []
    oddities += ["hierarchical"] if marker in _HIERARCHICAL else []
    oddities += ["arithmetic coding"] if marker in _ARITHMETIC else []
    return ", ".join(oddities) or None


def _frame(content: bytes) -> tuple[int, int] | None:
    """A JPEG's kind, by the marker that starts its frame (0xC0 baseline, 0xC2 progressive, ...),
    and its bits per sample.
    """
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 5 <= len(content) and content[position] == 0xFF:
        marker, length, bits = struct.unpack_from(">BHB", content, position + 1)
        if marker == 0xFF:  # Fill.
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            return marker, bits
        else:
            position += 2 + length
    return None
