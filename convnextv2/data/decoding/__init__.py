"""The C++ decoder, and its functions as code compiled by numba calls them.

Arrays are passed by address. The first three functions return a `Problem`.

- `locate(table, shards, sample, pixel_bytes, place)` finds a sample and fills `place` (6 int64:
  address, size, mode, height, width, label).
- `view(place, box, filter, decode, height, width, out)` writes the box (6 float64: top, left,
  bottom, right, mirrored, beyond) of that image to `out` (height, width, 3) uint8.
- `view_bands(place, box, filter, height, width, channels, value_bytes, out)` does the same for
  other numbers of channels and for 16 bits.
- `prefetch(table, shards, samples, count, pixel_bytes)` asks the kernel to read samples ahead.
"""

import ctypes
import subprocess
from enum import IntEnum
from functools import cache
from pathlib import Path

import llvmlite.binding
from numba import types

from convnextv2.kernels.compiler import built

FOLDER = Path(__file__).parent
HEADERS = ("axis.h", "bands.h", "faults.h", "jpeg.h", "resample.h")
SOURCES = [FOLDER / name for name in ("decoding.cpp", *HEADERS)]


class Problem(IntEnum):
    """Why a sample could not be served."""

    NONE = 0
    NOT_THERE = 1
    DAMAGED = 2
    UNREADABLE = 3


# Linked by name, not by address, so that numba can cache the compiled callers on disk.
_pointer = types.intp
locate = types.ExternalFunction(
    "convnextv2_locate",
    types.int32(_pointer, types.int64, types.uint64, types.int32, _pointer),
)
view = types.ExternalFunction(
    "convnextv2_view",
    types.int32(_pointer, _pointer, types.int32, types.int32, types.int32, types.int32, _pointer),
)
view_bands = types.ExternalFunction(
    "convnextv2_view_bands",
    types.int32(_pointer, _pointer, *[types.int32] * 5, _pointer),
)


@cache
def library() -> ctypes.CDLL:
    """The decoder, compiled on first use (3 seconds, once per machine) and linked for numba.

    Raises:
        RuntimeError: When it cannot be compiled; the message says what is missing.
    """
    try:
        path = str(built("decoding", SOURCES, ["-ljpeg"]))
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None) or error
        raise RuntimeError(
            f"the JPEG decoder cannot be compiled; it needs g++ and libjpeg-turbo with its headers "
            f"(apt-get install g++ libjpeg62-turbo-dev or libjpeg-turbo8-dev): {details}"
        ) from error
    llvmlite.binding.load_library_permanently(path)
    found = ctypes.CDLL(path)
    found.convnextv2_prefetch.argtypes = [
        ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32,
    ]  # fmt: skip
    found.convnextv2_prefetch.restype = None
    return found
