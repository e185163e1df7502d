"""Views: which part of an image is seen, against torchvision's distribution and by hand."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba import njit
from torchvision.transforms import RandomResizedCrop

from convnextv2.data.views import CenterView, RandomView, View, crop_chooser, mirror_columns
from tests.convnextv2 import splitmix

Crops = npt.NDArray[np.int64]
DRAWS = 4000


@cache
def compiled(view: View) -> Callable[..., Crops]:
    """What the loader compiles, over many samples: rows of (top, left, height, width, flip)."""
    choose = njit(crop_chooser(view))

    @njit
    def crops(seed: Any, epoch: Any, samples: Any, height: Any, width: Any) -> Any:
        rows = np.empty((len(samples), 5), np.int64)
        for row, sample in enumerate(samples):
            top, left, h, w, flip = choose(seed, epoch, sample, height, width)
            rows[row] = np.array([top, left, h, w, flip])
        return rows

    chosen: Callable[..., Crops] = crops
    return chosen


def crops_of(
    view: View, height: int, width: int, *, seed: int = 0, epoch: int = 0, samples: int = DRAWS
) -> Crops:
    indices = np.arange(samples, dtype=np.uint64)
    return compiled(view)(
        np.uint64(seed), np.uint64(epoch), indices, np.uint32(height), np.uint32(width)
    )


def torchvisions(view: RandomView, height: int, width: int) -> Crops:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    scale, ratio = list(view.scale), list(view.ratio)
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
    ("view", "height", "width"),
    [
        (RandomView(size=(224, 224)), 300, 400),
        (RandomView(size=(32, 32), scale=(0.08, 1.0)), 280, 280),
        # Few attempts fit here, in about half of the draws none of the ten does.
        (RandomView(size=(32, 32), scale=(0.32, 1.0)), 100, 300),
    ],
)
def test_crops_are_distributed_as_torchvisions(view: RandomView, height: int, width: int) -> None:
    ours = described(crops_of(view, height, width), height, width)
    theirs = described(torchvisions(view, height, width), height, width)
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
    view = RandomView(size=(8, 8), scale=(0.2, 0.5), ratio=(0.5, 2.0))
    for height, width in ((200, 200), (90, 160), (160, 90)):
        top, left, h, w, _ = crops_of(view, height, width).T
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
    ],
)
def test_where_no_crop_fits_the_middle_is_taken(
    height: int, width: int, expected: tuple[int, ...]
) -> None:
    view = RandomView(size=(8, 8), scale=(0.9, 1.0))
    crops = crops_of(view, height, width, samples=20)
    assert {tuple(crop) for crop in crops[:, :4].tolist()} == {expected}


@pytest.mark.parametrize(("flip", "low", "high"), [(0.5, 0.47, 0.53), (0.0, 0, 0), (1.0, 1, 1)])
def test_as_many_are_mirrored_as_asked_for(flip: float, low: float, high: float) -> None:
    view = RandomView(size=(8, 8), flip=flip)
    crops = crops_of(view, 100, 100)
    assert low <= crops[:, 4].mean() <= high
    if flip == 0.5:
        # Whether an image is mirrored tells nothing about its crop.
        assert abs(np.corrcoef(crops[:, 4], crops[:, 1])[0, 1]) < 4 / np.sqrt(DRAWS)


def test_a_view_is_a_function_of_seed_epoch_and_sample() -> None:
    view = RandomView(size=(8, 8))
    first = crops_of(view, 120, 90, seed=3, epoch=2)
    np.testing.assert_array_equal(crops_of(view, 120, 90, seed=3, epoch=2), first)
    assert (crops_of(view, 120, 90, seed=4, epoch=2) != first).any(axis=1).mean() > 0.95
    assert (crops_of(view, 120, 90, seed=3, epoch=3) != first).any(axis=1).mean() > 0.95
    assert len(np.unique(first, axis=0)) > 0.95 * DRAWS


def test_a_crop_follows_from_the_published_draws() -> None:
    # Once by hand, so that a changed draw number, which would change every run, is noticed.
    view = RandomView(size=(8, 8), scale=(0.3, 1.0))
    for height, width in ((300, 400), (100, 300)):
        crops = crops_of(view, height, width, seed=7, epoch=5, samples=100)
        for sample, crop in enumerate(crops.tolist()):
            assert tuple(crop) == splitmix.random_crop(view, 7, 5, sample, height, width), sample


@pytest.mark.parametrize(
    ("view", "height", "width", "expected"),
    [
        (CenterView(size=(224, 224), crop=0.875), 256, 256, (16, 16, 224, 224)),
        (CenterView(size=(224, 224), crop=0.875), 256, 512, (16, 144, 224, 224)),
        (CenterView(size=(224, 224), crop=0.875), 512, 256, (144, 16, 224, 224)),
        (CenterView(size=(32, 32), crop=1.0), 28, 28, (0, 0, 28, 28)),
        (CenterView(size=(224, 224), crop=1.0), 61, 61, (0, 0, 61, 61)),
        (CenterView(size=(224, 224), crop=1.0), 61, 122, (0, 30, 61, 61)),
        (CenterView(size=(100, 200), crop=1.0), 100, 100, (25, 0, 50, 100)),
        (CenterView(size=(100, 200), crop=0.5), 300, 300, (112, 75, 75, 150)),
        (CenterView(size=(32, 32), crop=0.1), 3, 5, (1, 2, 1, 1)),
    ],
)
def test_the_centre_is_a_share_of_the_largest_box(
    view: CenterView, height: int, width: int, expected: tuple[int, ...]
) -> None:
    crops = crops_of(view, height, width, samples=3)
    assert crops.tolist() == [[*expected, 0]] * 3


@pytest.mark.parametrize("width", [1, 4, 5])
def test_mirroring_swaps_left_and_right(width: int) -> None:
    image = np.arange(3 * width * 3, dtype=np.uint8).reshape(3, width, 3)
    mirrored = image.copy()
    mirror_columns(mirrored)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
