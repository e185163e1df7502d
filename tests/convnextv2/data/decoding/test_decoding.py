"""The C++ decoder: what it leaves out changes no pixel, and damage is told, never a crash."""

import ctypes
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from ffcv.libffcv import resize_crop
from PIL import Image

from convnextv2.data.decoding import Problem, library
from convnextv2.data.loading.views import DECODES, FILTERS, Decode, Interpolation

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[float, float, float, float]  # top, left, bottom, right


def picture(height: int, width: int, seed: int = 0, noise: float = 8.0) -> Bytes:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([rows / 17 + seed, columns / 13, (rows + columns) / 29], axis=-1)
    grain = np.random.default_rng(seed).normal(0, noise, waves.shape)
    return np.clip(127 + 100 * np.sin(waves) + grain, 0, 255).astype(np.uint8)


def jpeg(pixels: Bytes, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def decoded(data: bytes) -> Bytes:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def view(
    data: bytes | Bytes,
    shape: tuple[int, int],
    box: Box,
    size: tuple[int, int],
    *,
    how: Decode = "exact",
    interpolation: Interpolation = "bicubic",
    mirrored: bool = False,
    beyond: bool = False,
) -> tuple[Bytes, Problem]:
    """What the compiled code does for one image: JPEG bytes, or raw pixels."""
    raw = not isinstance(data, bytes)
    stored = np.frombuffer(bytes(64) if raw else data, np.uint8)
    # Raw pixels lie in a file that goes on after them.
    stored = np.concatenate([data.reshape(-1), stored]) if not isinstance(data, bytes) else stored
    place = np.array([stored.ctypes.data, stored.size, int(raw), *shape, 0], np.int64)
    numbers = np.array([*box, mirrored, beyond], np.float64)
    out = np.zeros((*size, 3), np.uint8)
    problem = library().convnextv2_view(
        place.ctypes.data_as(_pointer),
        numbers.ctypes.data_as(_pointer),
        FILTERS[interpolation],
        DECODES[how],
        *size,
        out.ctypes.data_as(_pointer),
    )
    return out, Problem(problem)


_pointer = ctypes.c_void_p

SHAPES = [(1, 1), (1, 50), (50, 1), (7, 3), (16, 17), (33, 64), (100, 75), (251, 333)]
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


def boxes(height: int, width: int, count: int = 12) -> list[Box]:
    rng = np.random.default_rng(height * 1000 + width)
    made: list[Box] = [(0, 0, height, width)]
    for _ in range(count):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        bottom, right = int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1
        made.append((top, left, bottom, right))
    return made


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_decoded_changes_no_pixel(kind: str, shape: tuple[int, int]) -> None:
    data = jpeg(picture(*shape), **KINDS[kind])
    for interpolation in FILTERS:
        for box in boxes(*shape):
            for size in ((16, 24), (40, 40)):
                part, fine = view(data, shape, box, size, interpolation=interpolation)
                full, _ = view(data, shape, box, size, how="full", interpolation=interpolation)
                raw, _ = view(decoded(data), shape, box, size, interpolation=interpolation)
                assert fine is Problem.NONE
                np.testing.assert_array_equal(part, full)
                np.testing.assert_array_equal(raw, full)


@pytest.mark.parametrize("sampling", ["411", "440"])
def test_rare_samplings_too(sampling: str) -> None:
    option = [
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}"),
    ]
    for shape in ((7, 3), (33, 64), (100, 75)):
        data = cv2.imencode(".jpg", picture(*shape), option)[1].tobytes()
        for box in boxes(*shape):
            part, fine = view(data, shape, box, (16, 24))
            raw, _ = view(decoded(data), shape, box, (16, 24))
            assert fine is Problem.NONE
            np.testing.assert_array_equal(part, raw)


def test_grey_jpegs_come_as_rgb() -> None:
    grey = picture(40, 60)[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "JPEG", quality=95)
    out, _ = view(file.getvalue(), (40, 60), (0, 0, 40, 60), (40, 60))
    np.testing.assert_array_equal(out, decoded(file.getvalue()))


def test_bicubic_is_pillows() -> None:
    """But for the order of the two passes, between which values are cut to a byte."""
    pixels = picture(251, 333, noise=20)
    image = Image.fromarray(pixels)
    for box in boxes(251, 333, 30):
        top, left, bottom, right = (int(edge) for edge in box)
        crop = image.crop((left, top, right, bottom))
        theirs = np.asarray(crop.resize((48, 64), Image.Resampling.BICUBIC)).astype(int)
        ours, _ = view(pixels, (251, 333), box, (64, 48))
        difference = np.abs(ours - theirs)
        assert difference.mean() < 0.4
        assert (difference > 1).mean() < 0.02
        # Without values that are cut nothing differs but the rounding.
        mild = (pixels // 2 + 60).astype(np.uint8)
        crop = Image.fromarray(mild).crop((left, top, right, bottom))
        theirs = np.asarray(crop.resize((48, 64), Image.Resampling.BICUBIC)).astype(int)
        ours, _ = view(mild, (251, 333), box, (64, 48))
        assert np.abs(ours - theirs).max() <= 1


def test_bicubic_beyond_the_box_is_pillows_box() -> None:
    pixels = picture(120, 90)
    box = (10.25, 5.5, 99.75, 80.125)
    theirs = Image.fromarray(pixels).resize(
        (32, 40), Image.Resampling.BICUBIC, box=(box[1], box[0], box[3], box[2])
    )
    ours, _ = view(pixels, (120, 90), box, (40, 32), beyond=True)
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 1


def test_area_is_ffcvs_and_opencvs() -> None:
    pixels = picture(251, 333, noise=20)
    for box in boxes(251, 333, 40):
        top, left, bottom, right = (int(edge) for edge in box)
        opencv = cv2.resize(pixels[top:bottom, left:right], (48, 64), interpolation=cv2.INTER_AREA)
        ffcv = np.zeros((64, 48, 3), np.uint8)
        resize_crop(pixels, top, bottom, left, right, ffcv)
        ours, _ = view(pixels, (251, 333), box, (64, 48), interpolation="area")
        assert np.abs(ours - opencv.astype(int)).max() <= 1
        assert np.abs(ours - ffcv.astype(int)).max() <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
def test_mirrored_is_left_for_right(interpolation: Interpolation) -> None:
    data = jpeg(picture(60, 80))
    plain, _ = view(data, (60, 80), (3, 5, 58, 71), (30, 33), interpolation=interpolation)
    other, _ = view(
        data, (60, 80), (3, 5, 58, 71), (30, 33), interpolation=interpolation, mirrored=True
    )
    np.testing.assert_array_equal(other, plain[:, ::-1])


@pytest.mark.parametrize("sampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("times", [2.0, 2.1, 4.1, 8.7])
def test_a_reduced_scale_shifts_nothing(times: float, sampling: int) -> None:
    rows, columns = np.mgrid[0:720, 0:720] * 0.2
    slope = np.stack([40 + rows, 40 + columns, 80 + (rows + columns) / 2], axis=-1)
    data = jpeg(slope.astype(np.uint8), subsampling=sampling)
    size = (round(700 / times),) * 2
    for top, left in ((0, 0), (3, 11), (17, 8)):
        box = (top, left, top + 700, left + 700)
        exact, _ = view(data, (720, 720), box, size)
        reduced, _ = view(data, (720, 720), box, size, how="reduced")
        difference = reduced[4:-4, 4:-4].astype(int) - exact[4:-4, 4:-4]
        assert difference.any()
        assert np.abs(difference).max() <= 3
        # A shift by half a pixel of the output would be this much everywhere.
        assert np.abs(difference.mean(axis=(0, 1))).max() < 0.5 * (0.2 * times / 2)


def test_a_reduced_scale_is_used_from_twice_the_size_on() -> None:
    data = jpeg(picture(400, 400, noise=20))
    for tall, wide, changes in ((200, 200, True), (199, 200, False), (200, 199, False)):
        exact, _ = view(data, (400, 400), (31, 7, 31 + tall, 7 + wide), (100, 100))
        reduced, _ = view(data, (400, 400), (31, 7, 31 + tall, 7 + wide), (100, 100), how="reduced")
        assert (reduced != exact).any() == changes


def test_damage_is_told() -> None:
    data = jpeg(picture(90, 120))
    whole: Box = (0, 0, 90, 120)
    for bad in (b"", data[:10], data[: len(data) // 2], b"\0" * 500, data[200:]):
        assert view(bad + bytes(1), (90, 120), whole, (8, 8))[1] is Problem.DAMAGED
    # Bytes that are no RGB at all.
    file = io.BytesIO()
    Image.fromarray(picture(90, 120)).convert("CMYK").save(file, "JPEG")
    assert view(file.getvalue(), (90, 120), whole, (8, 8))[1] is Problem.DAMAGED
    # Another size than its record says.
    assert view(data, (120, 90), (0, 0, 120, 90), (8, 8))[1] is Problem.DAMAGED
    assert view(data, (90, 120), whole, (8, 8))[1] is Problem.NONE


FUZZ = """
import numpy as np
from tests.convnextv2.data.decoding.test_decoding import Problem, jpeg, picture, view
rng = np.random.default_rng(0)
seen = set()
for kind in ({}, {"progressive": True}, {"subsampling": 0}):
    data = np.frombuffer(jpeg(picture(70, 90), **kind), np.uint8)
    for turn in range(700):
        bad = data.copy()
        places = rng.integers(2, len(bad), rng.integers(1, 6))
        bad[places] = rng.integers(0, 256, len(places))
        cut = len(bad) if turn % 3 else rng.integers(1, len(bad))
        for how in ("reduced", "exact", "full"):
            seen.add(view(bad[:cut].tobytes(), (70, 90), (5, 7, 66, 81), (9, 11), how=how)[1])
assert seen == {Problem.NONE, Problem.DAMAGED}, seen
print("survived")
"""


def test_thousands_of_damaged_jpegs_end_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", FUZZ], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "survived", done.stderr[-2000:]


def test_threads_do_not_meet() -> None:
    data = [jpeg(picture(100 + n, 140 - n, seed=n)) for n in range(16)]

    def one(n: int) -> bytes:
        shape = (100 + n % 16, 140 - n % 16)
        return view(data[n % 16], shape, (2, 3, 90, 100), (32, 32))[0].tobytes()

    alone = [one(n) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(320))) == alone * 20
