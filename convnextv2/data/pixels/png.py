"""PNG: checksums, which decoders check only in part, and values of 16 bits.

As in browsers, damaged chunks beside the pixels (a text, a date, a colour profile) are left out.
Damage in chunks that make the pixels, transparency included, is an error that names the chunk.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from convnextv2.data.pixels.opening import open_image, orientation_of, turned
from convnextv2.data.pixels.samples import Samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BIT_DEPTH, _COLOUR_TYPE = 24, 25  # Where the header chunk has them.
_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6
_OPAQUE = np.uint16(0xFFFF)


class _Chunk(NamedTuple):
    kind: bytes
    begin: int
    end: int
    whole: bool


def without_damaged_notes(content: bytes) -> bytes:
    """The file without ancillary chunks whose checksum is wrong.

    Raises:
        ValueError: When it is cut short, or a chunk that the pixels need is damaged.
    """
    chunks = list(_chunks(content))
    kept = [SIGNATURE]
    for chunk in chunks:
        if chunk.whole:
            kept.append(content[chunk.begin : chunk.end])
        elif chunk.kind == b"tRNS" or not chunk.kind[0] & 0x20:
            raise ValueError(f"the checksum of its chunk {chunk.kind.decode()} is wrong")
    return content if len(kept) == len(chunks) + 1 else b"".join(kept)


def is_deep(content: bytes) -> bool:
    """Whether values have 16 bits."""
    return content[_BIT_DEPTH] == 16


def samples(content: bytes) -> Samples:
    """Values of 16 bits: Pillow keeps the upper half of them, unless they are grey."""
    with open_image(content, "PNG") as image:
        image.load()  # OpenCV fills up what is missing.
        orientation = orientation_of(image)
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16:
        raise ValueError("its 16-bit values cannot be decoded")
    values = values.reshape(*values.shape[:2], -1)
    chunks = {chunk.kind: content[chunk.begin + 8 : chunk.end - 4] for chunk in _chunks(content)}
    colour_type = content[_COLOUR_TYPE]
    if colour_type == _GREY and b"tRNS" in chunks:
        (clear,) = struct.unpack(">H", chunks[b"tRNS"][:2])
        values = np.dstack([values, np.where(values == clear, np.uint16(0), _OPAQUE)])
    elif colour_type == _GREY_ALPHA:
        values = values[..., [0, 3]]
    elif colour_type in (_RGB, _RGBA):
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    bits = chunks.get(b"sBIT", b"")[: 1 if colour_type in (_GREY, _GREY_ALPHA) else 3]
    return Samples(
        np.ascontiguousarray(turned(values.astype(np.uint16, copy=False), orientation)),
        alpha=values.shape[2] in (2, 4),
        declared_bits=max(bits, default=None),
    )


def _chunks(content: bytes) -> Iterator[_Chunk]:
    """The chunks up to the end mark, length and checksum included."""
    position, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise ValueError(f"cut short: it ends at byte {len(content):,} without an end mark")
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content) or not kind.isalpha():
            raise ValueError(f"cut short or damaged at byte {position:,}")
        (told,) = struct.unpack_from(">I", content, end - 4)
        yield _Chunk(kind, position, end, zlib.crc32(content[position + 4 : end - 4]) == told)
        position = end
