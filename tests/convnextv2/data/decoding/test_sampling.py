"""JPEGs whose colours are stored at any resolution: shrunk while they are decoded, none is lost."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from convnextv2.data.collection import RGBImage
from convnextv2.data.pixels import passes_through
from convnextv2.kernels.compiler import built
from tests.convnextv2.data.decoding.test_decoding import Bytes, Problem, view

Factors = tuple[int, int, int, int, int, int]
SAMPLINGS: dict[str, Factors] = {
    "4:4:4": (1, 1, 1, 1, 1, 1),
    "4:2:2": (2, 1, 1, 1, 1, 1),
    "4:2:2 as 2x2 and 1x2": (2, 2, 1, 2, 1, 2),
    "4:4:0": (1, 2, 1, 1, 1, 1),
    "4:2:0": (2, 2, 1, 1, 1, 1),
    "4:1:1": (4, 1, 1, 1, 1, 1),
    "4:4:1": (1, 4, 1, 1, 1, 1),
    "4:1:0": (4, 2, 1, 1, 1, 1),
    "2x4": (2, 4, 1, 1, 1, 1),
    "3x1": (3, 1, 1, 1, 1, 1),
    "1x3": (1, 3, 1, 1, 1, 1),
    "3x2": (3, 2, 1, 1, 1, 1),
    "two chromas": (2, 2, 2, 1, 1, 2),
    "more colour than light": (1, 1, 2, 2, 2, 2),
}
SIDE, STRIPE = 384, 5  # Pixels of the stored image, and of the output.


@cache
def _encoder() -> ctypes.CDLL:
    library = ctypes.CDLL(
        str(built("any-sampling", [Path(__file__).with_name("any_sampling.cpp")], ["-ljpeg"]))
    )
    library.encode.restype = ctypes.c_size_t
    return library


def encoded(pixels: RGBImage, factors: Factors) -> bytes:
    out = np.zeros(pixels.size + 4096, np.uint8)
    size = _encoder().encode(
        ctypes.c_void_p(pixels.ctypes.data),
        *pixels.shape[:2],
        (ctypes.c_int * 6)(*factors),
        ctypes.c_void_p(out.ctypes.data),
    )
    return out[:size].tobytes()


def stripes(times: float, *, upright: bool) -> Bytes:
    """Red and green of the same brightness, changing every `STRIPE` pixels of the output."""
    across = np.sin(np.pi * np.arange(SIDE) / (STRIPE * times))
    red, green = np.clip(90 + 90 * across, 0, 255), np.clip(90 - 45 * across, 0, 255)
    line = np.stack([red, green, np.full(SIDE, 90)], axis=-1).astype(np.uint8)
    image = np.broadcast_to(line, (SIDE, SIDE, 3))
    return np.ascontiguousarray(image if upright else image.transpose(1, 0, 2))


@pytest.mark.parametrize("upright", [True, False], ids=["upright", "level"])
@pytest.mark.parametrize("times", [2, 4, 8])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_reduced_scale_keeps_colours(sampling: str, times: int, upright: bool) -> None:
    data = encoded(stripes(times, upright=upright), SAMPLINGS[sampling])
    box, size = (0, 0, SIDE, SIDE), (SIDE // times, SIDE // times)
    full, fine = view(data, (SIDE, SIDE), box, size, how="full")
    reduced, _ = view(data, (SIDE, SIDE), box, size, how="reduced")
    assert fine is Problem.NONE
    difference = np.abs(reduced.astype(int) - full)
    # 4:1:1 at a reduced scale would be off by 15 levels on average, and 73 at the worst place.
    assert difference.mean() < 10
    assert difference.max() < 32


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_is_not_decoded_changes_no_pixel_of_any_sampling(sampling: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    data = encoded(pixels, SAMPLINGS[sampling])
    for box in ((0, 0, 61, 83), (7, 13, 50, 60), (33, 5, 60, 82)):
        part, _ = view(data, (61, 83), box, (16, 24))
        full, fine = view(data, (61, 83), box, (16, 24), how="full")
        assert fine is Problem.NONE
        np.testing.assert_array_equal(part, full)


def test_only_samplings_that_every_reader_knows_are_stored_as_they_are() -> None:
    pixels = stripes(4, upright=True)
    stored = {
        name
        for name, factors in SAMPLINGS.items()
        if passes_through(encoded(pixels, factors), None)
    }
    assert {"4:4:4", "4:2:2", "4:4:0", "4:2:0", "4:1:1"} <= stored
    assert not {"3x1", "1x3", "3x2", "2x4", "4:1:0", "two chromas"} & stored
