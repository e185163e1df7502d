"""JPEG decoding that treats every warning as damage, by the library with which FFCV decodes.

libjpeg only warns of most damage, and fills what it cannot decode with grey or garbage.
"""

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

YCBCR, GREY = 1, 2
_RGB_PIXELS, _CMYK_PIXELS = 0, 11
_ACCURATE_DCT, _STOP_ON_WARNING, _LIMIT_SCANS = 4096, 8192, 32768


def colour_space(jpeg: bytes) -> int | None:
    """Colour space in the header (`YCBCR`, `GREY` or another); None if the header is damaged."""
    width, height, subsampling, space = (ctypes.c_int() for _ in range(4))
    with _decompressor() as handle:
        failed = _library().tjDecompressHeader3(
            handle,
            jpeg,
            ctypes.c_ulong(len(jpeg)),
            *map(ctypes.byref, (width, height, subsampling, space)),
        )
    return None if failed else space.value


def decompress(jpeg: bytes, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Decode to (height, width, channels): 3 for RGB, also from grey; 4 for CMYK as stored.

    Raises:
        ValueError: At the first warning of libjpeg.
    """
    pixels = np.empty((height, width, channels), np.uint8)
    with _decompressor() as handle:
        failed = _library().tjDecompress2(
            handle,
            jpeg,
            ctypes.c_ulong(len(jpeg)),
            pixels.ctypes.data_as(ctypes.c_void_p),
            width,
            width * channels,
            height,
            _RGB_PIXELS if channels == 3 else _CMYK_PIXELS,
            _ACCURATE_DCT | _STOP_ON_WARNING | _LIMIT_SCANS,
        )
        if failed:
            raise ValueError(_library().tjGetErrorStr2(handle).decode(errors="replace"))
    return pixels


@contextmanager
def _decompressor() -> Iterator[ctypes.c_void_p]:
    handle = ctypes.c_void_p(_library().tjInitDecompress())
    try:
        yield handle
    finally:
        _library().tjDestroy(handle)


@cache
def _library() -> ctypes.CDLL:
    """libjpeg-turbo by way of FFCV's library, which is linked to it.

    FFCV itself is not imported, because that takes seconds.
    """
    package = importlib.util.find_spec("ffcv")
    if package is None or not package.submodule_search_locations:
        raise ImportError("FFCV is not installed")
    folder = Path(package.submodule_search_locations[0])
    found = next(folder.glob("_libffcv*"), None)
    if found is None:
        raise ImportError(f"FFCV in {folder} has no compiled _libffcv; tested with FFCV 1.0.2")
    library = ctypes.CDLL(str(found))
    library.tjInitDecompress.restype = ctypes.c_void_p
    library.tjGetErrorStr2.restype = ctypes.c_char_p
    return library
