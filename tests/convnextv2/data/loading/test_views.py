"""Views: which part of an image is seen, against torchvision and by hand."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba import njit
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize

from convnextv2.data.loading.views import (
    CenterView,
    RandomView,
    SquashView,
    View,
    choose_box,
    random_crop,
)
from tests.convnextv2.data.decoding.test_decoding import jpeg, picture, view
from tests.convnextv2.data.order import splitmix

Crops = npt.NDArray[np.int64]
DRAWS = 4000


@njit
def many(numbers: Any, clock: Any, samples: Any, height: Any, width: Any) -> Any:
    rows = np.empty((len(samples), 5), np.int64)
    for row, sample in enumerate(samples):
        top, left, h, w, flip = random_crop(numbers, clock[0], clock[1], sample, height, width)
        rows[row] = np.array([top, left, h, w, int(flip)])
    return rows


def crops_of(
    wanted: RandomView, height: int, width: int, *, seed: int = 0, epoch: int = 0,
    samples: int = DRAWS,
) -> Crops:  # fmt: skip
    """Rows of (top, left, height, width, flip)."""
    indices = np.arange(samples, dtype=np.uint64)
    clock = np.array([seed, epoch], np.uint64)
    crops: Crops = many(wanted.parameters[1], clock, indices, height, width)
    return crops


def torchvisions(wanted: RandomView, height: int, width: int) -> Crops:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    scale, ratio = list(wanted.scale), list(wanted.ratio)
    return np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(DRAWS)])


def described(crops: Crops, height: int, width: int) -> dict[str, npt.NDArray[np.float64]]:
    """Share of the area, log of the aspect, and the place among those a crop could take."""
    top, left, h, w = crops[:, :4].T
    return {
        "area": h * w / (height * width),
        "aspect": np.log(w / h),
        "top": (top + 0.5) / (height - h + 1),
        "left": (left + 0.5) / (width - w + 1),
    }


@pytest.mark.parametrize(
    ("wanted", "height", "width"),
    [
        (RandomView(size=(224, 224)), 300, 400),
        (RandomView(size=(32, 32), scale=(0.08, 1.0)), 280, 280),
        # Few attempts fit here, in about half of the draws none of the ten does.
        (RandomView(size=(32, 32), scale=(0.32, 1.0)), 100, 300),
    ],
)
def test_crops_are_distributed_as_torchvisions(wanted: RandomView, height: int, width: int) -> None:
    ours = described(crops_of(wanted, height, width), height, width)
    theirs = described(torchvisions(wanted, height, width), height, width)
    for name in ours:
        # Kolmogorov-Smirnov: at any value, the shares of crops below it. Two samples of 4,000 from
        # one distribution differ by more than 4.4 points once in a thousand times; a mean that is
        # off by a tenth of a deviation makes 4.
        values = np.concatenate([ours[name], theirs[name]])
        below = [
            np.searchsorted(np.sort(sample[name]), values, side="right") / DRAWS
            for sample in (ours, theirs)
        ]
        assert np.abs(below[0] - below[1]).max() < 0.044, name
        assert abs(ours[name].mean() - theirs[name].mean()) < 0.09 * theirs[name].std(), name


def test_crops_stay_inside_the_image_and_within_their_bounds() -> None:
    wanted = RandomView(size=(8, 8), scale=(0.2, 0.5), ratio=(0.5, 2.0))
    for height, width in ((200, 200), (90, 160), (160, 90)):
        top, left, h, w, _ = crops_of(wanted, height, width).T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + h <= height).all()
        assert (left + w <= width).all()
        area, aspect = h * w / (height * width), w / h
        assert (area > 0.2 - 0.02).all()
        assert (area < 0.5 + 0.02).all()
        assert (aspect > 0.5 * 0.97).all()
        assert (aspect < 2 * 1.03).all()
        # Both ends are reached: the last row and column, and the first ones.
        assert {0, height} <= set(top) | set(top + h)
        assert {0, width} <= set(left) | set(left + w)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (10, 400, (0, 193, 10, 13)),  # wider than 4/3: full height, round(10 * 4/3) wide
        (400, 10, (193, 0, 13, 10)),
        (1, 1, (0, 0, 1, 1)),
        (1, 50, (0, 24, 1, 1)),
    ],
)
def test_where_no_crop_fits_the_middle_is_taken(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    wanted = RandomView(size=(8, 8), scale=(0.9, 1.0))
    crops = crops_of(wanted, height, width, samples=20)
    assert {tuple(crop) for crop in crops[:, :4].tolist()} == {expected}


@pytest.mark.parametrize(("flip", "low", "high"), [(0.5, 0.47, 0.53), (0.0, 0, 0), (1.0, 1, 1)])
def test_as_many_are_mirrored_as_asked_for(flip: float, low: float, high: float) -> None:
    crops = crops_of(RandomView(size=(8, 8), flip=flip), 100, 100)
    assert low <= crops[:, 4].mean() <= high
    if flip == 0.5:
        # Whether an image is mirrored tells nothing about its crop.
        assert abs(np.corrcoef(crops[:, 4], crops[:, 1])[0, 1]) < 4 / np.sqrt(DRAWS)


def test_a_view_is_a_function_of_seed_epoch_and_sample() -> None:
    wanted = RandomView(size=(8, 8))
    first = crops_of(wanted, 120, 90, seed=3, epoch=2)
    np.testing.assert_array_equal(crops_of(wanted, 120, 90, seed=3, epoch=2), first)
    assert (crops_of(wanted, 120, 90, seed=4, epoch=2) != first).any(axis=1).mean() > 0.95
    assert (crops_of(wanted, 120, 90, seed=3, epoch=3) != first).any(axis=1).mean() > 0.95
    assert len(np.unique(first, axis=0)) > 0.95 * DRAWS


def test_a_crop_follows_from_the_published_draws() -> None:
    # Once by hand, so that a changed draw number, which would change every run, is noticed.
    wanted = RandomView(size=(8, 8), scale=(0.3, 1.0))
    for height, width in ((300, 400), (100, 300)):
        crops = crops_of(wanted, height, width, seed=7, epoch=5, samples=100)
        for sample, crop in enumerate(crops.tolist()):
            assert tuple(crop) == splitmix.random_crop(wanted, 7, 5, sample, height, width), sample


def evaluated(wanted: View, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    kind, numbers = wanted.parameters
    clock = np.zeros(2, np.uint64)
    box = choose_box(kind, numbers, clock, np.uint64(0), *pixels.shape[:2], wanted.size)
    assert box[4] == 0
    out, _ = view(pixels, pixels.shape[:2], tuple(box[:4]), wanted.size, beyond=bool(box[5]))
    return out


@pytest.mark.parametrize(
    ("height", "width"), [(256, 256), (300, 400), (401, 283), (97, 640), (50, 50), (225, 224)]
)
@pytest.mark.parametrize(("side", "crop"), [(224, 0.875), (64, 0.875), (28, 1.0), (160, 0.95)])
def test_the_centre_is_that_of_resize_and_center_crop(
    height: int, width: int, side: int, crop: float
) -> None:
    """Below 384 px the official code has Resize(int(size / 0.875)) and CenterCrop(size)."""
    pixels = picture(height, width, noise=3)
    resized = Resize(int(side / crop), InterpolationMode.BICUBIC)(Image.fromarray(pixels))
    theirs = np.asarray(CenterCrop(side)(resized)).astype(int)
    ours = evaluated(CenterView(size=(side, side), crop=crop), pixels)
    difference = np.abs(ours - theirs)
    assert difference.max() <= 3
    assert (difference > 1).mean() < 0.01


def test_squashing_takes_the_whole_image() -> None:
    pixels = picture(300, 500, noise=3)
    theirs = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)
    ours = evaluated(SquashView(size=(96, 96)), pixels)
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 1


def test_evaluation_decodes_what_it_needs_and_the_same_pixels() -> None:
    data = jpeg(picture(300, 500))
    box = (20.5, 100.25, 280.5, 360.25)
    for beyond in (False, True):
        exact, _ = view(data, (300, 500), box, (64, 64), beyond=beyond)
        full, _ = view(data, (300, 500), box, (64, 64), how="full", beyond=beyond)
        np.testing.assert_array_equal(exact, full)
    assert CenterView(size=(8, 8)).decode == SquashView(size=(8, 8)).decode == "exact"
