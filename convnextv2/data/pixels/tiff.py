"""TIFF that Pillow does not show as stored: over 8 bits, signed values, or over 4 bands."""

import logging
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from convnextv2.data.pixels.opening import check_size, open_image, turned
from convnextv2.data.pixels.samples import Samples, depth, unsigned

_BANDS = _WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE, _ORIENTATION = 281, 341, 274
_PREMULTIPLIED, _STRAIGHT = 1, 2  # Values of the tag ExtraSamples.

# Errors say what is wrong; without a handler, tifffile would print it as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def is_deep(content: bytes) -> bool:
    """Whether Pillow cannot read the file, or shows other values than are stored in it."""
    try:
        with open_image(content, "TIFF") as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            bits, formats = tags.get(BITSPERSAMPLE, (1,)), tags.get(SAMPLEFORMAT, (1,))
            others = tags.get(PHOTOMETRIC_INTERPRETATION) not in _BANDS
            unknown = image.mode == "La"  # Pillow opens it, but can do nothing with it.
    except ValueError:
        return True
    return unknown or (not others and (max(bits) > 8 or any(kind != 1 for kind in formats)))


def has_bands(content: bytes) -> bool:
    """Whether values are bands, and not palette indices or coordinates of a colour space."""
    try:
        with open_image(content, "TIFF") as image:
            return image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) in _BANDS  # type: ignore[attr-defined]
    except ValueError:
        return True


def samples(content: bytes) -> Samples:
    """The values of the first image in the file.

    Raises:
        ValueError: When the file is damaged, or its values are not colours or bands of 8 or 16
            bits.
    """
    # Imported here because it takes 0.1 s, which only collections with such files need.
    import tifffile

    with tifffile.TiffFile(BytesIO(content)) as file:
        if not len(file.pages):
            raise ValueError("no image is in it; it may be cut short")
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        check_size(page.imagewidth, page.imagelength)
        if page.photometric not in _BANDS:
            colours = getattr(page.photometric, "name", page.photometric)
            raise ValueError(
                f"{page.bitspersample} bits of the colour space {colours} are not read"
            )
        values = unsigned(_bands_last(page.asarray(), page.axes))
        bits, extra = page.bitspersample, tuple(map(int, page.extrasamples))
        tags = {code: page.tags.get(code) for code in (_MAX_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE)}
        orientation = page.tags.get(_ORIENTATION)
    told = [int(np.max(tag.value)) for tag in tags.values() if tag is not None]
    declared = _declared(bits, max(told, default=0))
    if 1 < bits < 8:
        values = (values * (255 // ((1 << bits) - 1))).astype(np.uint8)
    if page.photometric == _WHITE_IS_ZERO:
        white = (1 << depth(int(values.max(initial=0)), declared)) - 1
        values = (white - values).astype(values.dtype)
    turn = int(orientation.value) if orientation is not None else 1
    return Samples(
        np.ascontiguousarray(turned(values, turn)),
        colours=3 if page.photometric == _RGB and len(extra) <= 1 else None,
        alpha=extra in ((_PREMULTIPLIED,), (_STRAIGHT,)),
        premultiplied=extra == (_PREMULTIPLIED,),
        declared_bits=declared,
    )


def _bands_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """(H, W, bands) from tifffile's axes Y, X and S, for interleaved and for separate bands."""
    if axes not in ("YX", "YXS", "SYX"):
        raise ValueError(
            f"an image of the axes {axes} is not read; rows, columns and bands would be"
        )
    return values[..., None] if axes == "YX" else np.moveaxis(values, axes.index("S"), -1)


def _declared(bits: int, largest: int) -> int | None:
    """Bits per value that the tags declare, or None.

    For 16 bits and more, only the `largest` value in the tags tells the depth: the stored type may
    be wider than the values.
    """
    if bits not in (16, 32, 64):
        return bits
    return largest.bit_length() or None
