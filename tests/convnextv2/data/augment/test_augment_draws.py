"""What the augmentations draw: the distributions of timm and torchvision, on fixed seeds."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import rand_bbox
from timm.data.random_erasing import RandomErasing as TimmErasing
from torchvision.transforms import ColorJitter as TorchvisionJitter

from convnextv2.data.augment import ColorJitter, Mixing, RandAugment, RandomErasing, mixing
from convnextv2.data.augment.rand_augment import Op, apply
from convnextv2.tasks import IMAGENET
from tests.convnextv2.data.augment.test_augment_pixels import picture

pytestmark = pytest.mark.slow

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
CLOCK = np.array([0, 0], np.uint64)
HEIGHT, WIDTH = 60, 72
DRAWS = 4000
RARE = 1e-3
"""Probability at which a statistic is taken for wrong; seeds are fixed."""


def run(settings: Any, images: Bytes) -> Any:
    """The operation's result on samples 0, 1, 2 ..."""
    memory = np.empty((len(images), 1), np.float32)
    indices = np.arange(len(images), dtype=np.uint64)
    return settings.operation(CLOCK).generate_code()(images, memory, indices)


def test_jitter_factors_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = [TorchvisionJitter.get_params(*[(0.6, 1.4)] * 3, (-0.1, 0.1))[1] for _ in range(DRAWS)]
    grey = np.full((DRAWS, 1, 1, 3), 150, np.uint8)
    ours = run(ColorJitter(0.4, 0.0, 0.0), grey)[:, 0, 0, 0] / 150
    assert stats.ks_2samp(ours, theirs).pvalue > RARE
    assert stats.kstest(ours, stats.uniform(0.6, 0.8).cdf).statistic < 0.03


def test_operations_are_as_frequent_as_they_should_be() -> None:
    image = picture(0, 16, 16) // 2  # dark, so that inverting is not solarizing
    results = run(RandAugment(9.0, 0.0, layers=1), np.stack([image] * DRAWS))
    made: dict[bytes, int] = {}
    for op in Op:
        for negative in (False, True):
            one = image.copy()
            apply(one, int(op), 0.9, negative)
            made.setdefault(one.tobytes(), op)
    assert len(made) == 6 + 9 * 2  # six operations have no sign
    counts = np.zeros(len(Op))
    untouched = 0
    for result in results:
        if (result == image).all():
            untouched += 1
        else:
            counts[made[result.tobytes()]] += 1
    assert stats.binomtest(untouched, DRAWS, 0.5).pvalue > RARE
    assert stats.chisquare(counts).pvalue > RARE


def test_both_signs_are_as_frequent() -> None:
    grey = np.full((DRAWS * 4, 1, 1, 3), 100, np.uint8)
    values = run(RandAugment(5.0, 0.0, layers=1), grey)[:, 0, 0, 0]
    darker, brighter = (values == 55).sum(), (values == 145).sum()  # brightness, 1 -+ 0.45
    assert darker + brighter > DRAWS / 10
    assert stats.binomtest(int(darker), int(darker + brighter), 0.5).pvalue > RARE


def test_magnitudes_are_normal_and_cut_off_at_ten() -> None:
    dark = np.full((DRAWS * 8, 8, 8, 3), 20, np.uint8)
    values = run(RandAugment(9.0, 0.5, layers=1), dark)[:, 4, 4, 0].astype(int)
    # Only SOLARIZE_ADD makes a 20 one of these: it adds int(11 x magnitude).
    added = values[(values > 60) & (values < 200)] - 20
    assert stats.binomtest(len(added), len(dark), 1 / 30).pvalue > RARE
    steps = np.arange(85, 110)
    theirs = stats.norm(9, 0.5).cdf(steps / 11)
    ours = (added[:, None] < steps).mean(axis=0)
    assert np.abs(ours - theirs).max() < 1.95 / np.sqrt(len(added))
    assert added.max() == 110


def rectangles_of_timm() -> np.ndarray[Any, Any]:
    torch.manual_seed(0)
    erase = TimmErasing(probability=1.0, mode="const", device="cpu")
    found = []
    for _ in range(DRAWS // 4):
        image = torch.ones(1, HEIGHT, WIDTH)
        erase(image)
        there = (image[0] == 0).nonzero()
        (top, left), (bottom, right) = there[0].tolist(), there[-1].tolist()
        found.append((top, left, bottom - top + 1, right - left + 1))
    return np.array(found)


def test_erased_rectangles_are_distributed_as_timms() -> None:
    images = run(RandomErasing(1.0, mode="const"), np.zeros((DRAWS, HEIGHT, WIDTH, 3), np.uint8))
    assert set(np.unique(images[:, :, :, 0])) == {0, 124}
    rows, columns = images.any(axis=(2, 3)), images.any(axis=(1, 3))
    assert rows.any(axis=1).all()
    ours = np.stack(
        [rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1
    )
    theirs = rectangles_of_timm()
    for measure in (
        lambda r: r[:, 0],
        lambda r: r[:, 1],
        lambda r: r[:, 2] * r[:, 3],
        lambda r: r[:, 2] / r[:, 3],
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > RARE


def test_erasing_happens_as_often_as_asked() -> None:
    images = run(RandomErasing(0.25), np.zeros((DRAWS, 8, 8, 3), np.uint8))
    erased = int(images.any(axis=(1, 2, 3)).sum())
    assert stats.binomtest(erased, DRAWS, 0.25).pvalue > RARE


def test_erasing_with_pixels_is_rounded_normal_noise() -> None:
    """Mean plus std x normal, which is 0 +- 1 to the network; every pixel and channel its own."""
    images = run(RandomErasing(1.0, (0.3, 1 / 3)), np.zeros((60, 64, 64, 3), np.uint8))
    values = np.concatenate([image[image.any(axis=2)] for image in images])
    assert len(values) > 60 * 64 * 64 / 5
    for channel in range(3):
        noise = stats.norm(255 * IMAGENET.mean[channel], 255 * IMAGENET.std[channel])
        edges = np.arange(20, 240, 4)
        ours = (values[:, channel, None] < edges).mean(axis=0)
        theirs = noise.cdf(edges - 0.5)
        assert np.abs(ours - theirs).max() < 1.95 / np.sqrt(len(values))
        assert (values[:, channel] == 255).mean() == pytest.approx(noise.sf(254.5), abs=2e-3)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 4 / np.sqrt(len(values))
    assert abs(np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]) < 4 / np.sqrt(len(values))


def test_erasing_with_a_random_colour_fills_with_one() -> None:
    images = run(RandomErasing(1.0, mode="rand"), np.zeros((DRAWS, 16, 16, 3), np.uint8))
    colours = []
    for image in images:
        inside = np.unique(image.reshape(-1, 3), axis=0)
        assert len(inside) <= 2
        colours.append(inside[-1])
    for channel, values in enumerate(np.array(colours).T):
        noise = stats.norm(255 * IMAGENET.mean[channel], 255 * IMAGENET.std[channel])
        edges = np.arange(20, 240, 4)
        difference = (values[:, None] < edges).mean(axis=0) - noise.cdf(edges - 0.5)
        assert np.abs(difference).max() < 1.95 / np.sqrt(DRAWS)


def shares(settings: Mixing) -> Any:
    return run(settings, np.zeros((DRAWS, 8, 8, 3), np.uint8))[1]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.8, 1.0, 4.0])
def test_mixup_coefficients_are_beta(alpha: float) -> None:
    drawn = shares(Mixing(alpha, 0.0)).astype(float)
    if alpha < 0.1:  # much of it lies where float32 is 1
        drawn = np.minimum(drawn, 1 - drawn)
        assert (drawn < 1e-6).mean() == pytest.approx(
            2 * stats.beta(alpha, alpha).cdf(1e-6), abs=0.03
        )
    else:
        assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > RARE


@pytest.mark.parametrize(("height", "width", "alpha"), [(33, 47, 1.0), (32, 32, 0.3)])
def test_boxes_of_cutmix_are_timms(height: int, width: int, alpha: float) -> None:
    numbers = Mixing(0.0, alpha).operation(CLOCK).numbers[0]
    chosen = [mixing.choose(CLOCK, np.uint64(n), height, width, numbers) for n in range(DRAWS)]
    ours = np.array([box for _, box in chosen])  # top, left, bottom, right
    np.random.seed(0)
    betas = np.random.beta(alpha, alpha, DRAWS)
    boxes = np.array([rand_bbox((height, width), share) for share in betas])
    theirs = boxes[:, [0, 2, 1, 3]]
    for side in range(4):
        assert stats.ks_2samp(ours[:, side], theirs[:, side]).pvalue > RARE
    # Sides of boxes that no border cut are odd as often as even.
    inner = ours[(ours[:, 0] > 0) & (ours[:, 2] < height)]
    assert 0.3 < ((inner[:, 2] - inner[:, 0]) % 2).mean() < 0.7
    areas = (ours[:, 2] - ours[:, 0]) * (ours[:, 3] - ours[:, 1])
    np.testing.assert_allclose([s for s, _ in chosen], 1 - areas / (height * width))


def test_kinds_are_chosen_as_often_as_asked() -> None:
    """Of boxes on 8 x 8 the share is a multiple of 1/64."""
    drawn = shares(Mixing(0.8, 1.0, switch_probability=0.3))
    boxes = int((drawn * 64 == np.rint(drawn * 64)).sum())
    assert stats.binomtest(boxes, DRAWS, 0.3).pvalue > RARE
    assert (shares(Mixing(0.8, 1.0, probability=0.0)) == 1).all()
    half = shares(Mixing(1.0, 0.0, probability=0.5))
    assert stats.binomtest(int((half == 1).sum()), DRAWS, 0.5).pvalue > RARE
