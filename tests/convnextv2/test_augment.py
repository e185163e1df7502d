"""Augmentation: Pillow's and timm's pixels, their distributions, draws that are the sample's."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing as TimmErasing

from convnextv2.data.augment import (
    Augment,
    ColorJitter,
    Mixing,
    RandAugment,
    RandomErasing,
    color,
    erasing,
    mixing,
    rand_augment,
)
from convnextv2.data.augment.pixels import FILL
from convnextv2.data.augment.rand_augment import Op

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = 60, 72
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def picture(seed: int = 0) -> Bytes:
    """Smooth, with noise, all channels different."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.stack([rows / 9 + seed, columns / 7, (rows - columns) / 11], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 6, waves.shape)
    return np.clip(120 + 90 * np.sin(waves) + noise, 0, 255).astype(np.uint8)


def pillow(op: Op, level: float, negative: bool) -> Bytes:
    """The operation by timm and Pillow, with timm's formulas for magnitude 10 x level."""
    image, sign = Image.fromarray(picture()), -1 if negative else 1
    how: dict[str, Any] = {"resample": Image.Resampling.BICUBIC, "fillcolor": FILL}
    factor = max(0.1, 1 + sign * level * 0.9)
    made: dict[Op, Callable[[], Image.Image]] = {
        Op.AUTO_CONTRAST: lambda: ImageOps.autocontrast(image),
        Op.EQUALIZE: lambda: ImageOps.equalize(image),
        Op.INVERT: lambda: ImageOps.invert(image),
        Op.ROTATE: lambda: auto_augment.rotate(image, sign * level * 30, **how),
        Op.POSTERIZE: lambda: auto_augment.posterize(image, 4 - int(level * 4)),
        Op.SOLARIZE: lambda: auto_augment.solarize(image, 256 - min(256, int(level * 256))),
        Op.SOLARIZE_ADD: lambda: auto_augment.solarize_add(image, min(128, int(level * 110))),
        Op.COLOR: lambda: ImageEnhance.Color(image).enhance(factor),
        Op.CONTRAST: lambda: ImageEnhance.Contrast(image).enhance(factor),
        Op.BRIGHTNESS: lambda: ImageEnhance.Brightness(image).enhance(factor),
        Op.SHARPNESS: lambda: ImageEnhance.Sharpness(image).enhance(factor),
        Op.SHEAR_X: lambda: auto_augment.shear_x(image, sign * level * 0.3, **how),
        Op.SHEAR_Y: lambda: auto_augment.shear_y(image, sign * level * 0.3, **how),
        Op.TRANSLATE_X: lambda: auto_augment.translate_x_rel(image, sign * level * 0.45, **how),
        Op.TRANSLATE_Y: lambda: auto_augment.translate_y_rel(image, sign * level * 0.45, **how),
    }
    return np.asarray(made[op]())


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_an_operation_is_pillows(op: Op) -> None:
    geometric = op in {Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y}
    changed = False
    for level in (0.0, 0.31, 0.77, 0.9, 0.99):
        for negative in (False, True):
            ours = picture()
            rand_augment.apply(ours, int(op), level, negative)
            theirs = pillow(op, level, negative)
            difference = np.abs(ours.astype(int) - theirs)
            assert difference.max() <= (1 if geometric else 0)
            assert (difference > 0).mean() < 1e-3
            changed |= bool((ours != picture()).any())
    assert changed


def test_the_largest_magnitude_posterizes_to_black() -> None:
    ours = picture()
    rand_augment.apply(ours, int(Op.POSTERIZE), 1.0, False)
    assert not ours.any()


def test_one_flat_colour_survives_what_divides_by_its_range() -> None:
    for op in Op:
        flat = np.full((9, 9, 3), 77, np.uint8)
        rand_augment.apply(flat, int(op), 0.5, False)
        if op in {Op.AUTO_CONTRAST, Op.EQUALIZE, Op.CONTRAST, Op.SHARPNESS, Op.COLOR}:
            assert (flat == 77).all(), op


EVERYTHING = Augment(
    color_jitter=ColorJitter(),
    rand_augment=RandAugment(),
    erasing=RandomErasing(probability=0.7),
    mixing=Mixing(0.8, 1.0),
)


def augmented(indices: list[int], epoch: int = 0, seed: int = 0) -> list[bytes]:
    """Bytes of pictures number `indices` after all operations, by FFCV's contract."""
    clock = np.array([seed, epoch], np.uint64)
    images = np.stack([picture(number) for number in indices])
    samples = np.array(indices, np.uint64)
    memory = np.zeros((len(indices), 1), np.float32)
    for operation in EVERYTHING.operations(clock):
        code = operation.generate_code()
        assert code.with_indices
        result = code(images, memory, samples)
    images, coefficients = result
    return [
        image.tobytes() + np.float32(c).tobytes()
        for image, c in zip(images, coefficients, strict=True)
    ]


def test_what_happens_to_an_image_is_its_own_wherever_it_stands() -> None:
    together = augmented([0, 1, 2, 3, 4, 5])
    assert augmented([4, 5]) + augmented([2, 3]) == together[4:] + together[2:4]
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    assert augmented([0, 1, 2, 3, 4, 5]) == together
    numba.set_num_threads(threads)
    assert augmented([0, 1], epoch=1) != together[:2]
    assert augmented([0, 1], seed=1) != together[:2]


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="pairs, this batch has 3"):
        augmented([0, 1, 2])


CLOCK = np.array([0, 0], np.uint64)
DRAWS = 4000


def test_erased_rectangles_are_distributed_as_timms() -> None:
    numbers = np.array([1.0, 0.02, 1 / 3, np.log(0.3), np.log(1 / 0.3)])
    ours = np.array(
        [erasing.rectangle(*CLOCK, np.uint64(n), HEIGHT, WIDTH, numbers) for n in range(DRAWS)]
    )
    timms = []
    erase = TimmErasing(probability=1.0, mode="const", device="cpu")
    for _ in range(DRAWS // 4):
        image = torch.ones(1, HEIGHT, WIDTH)
        erase._erase(image, 1, HEIGHT, WIDTH, torch.float32)
        there = (image[0] == 0).nonzero()
        if len(there):
            (top, left), (bottom, right) = there[0].tolist(), there[-1].tolist()
            timms.append((top, left, bottom - top + 1, right - left + 1))
    theirs = np.array(timms)
    area = [h * w for _, _, h, w in ours], [h * w for _, _, h, w in theirs]
    ratio = [h / w for _, _, h, w in ours], [h / w for _, _, h, w in theirs]
    place = ours[:, 0], theirs[:, 0]
    for mine, timm in (area, ratio, place):
        assert stats.ks_2samp(mine, timm).pvalue > 1e-3


def test_erasing_happens_as_often_as_asked_and_is_noise_of_the_right_kind() -> None:
    images = np.zeros((400, 32, 32, 3), np.uint8)
    indices = np.arange(400, dtype=np.uint64)
    numbers = np.array([0.25, 0.3, 1 / 3, np.log(0.5), np.log(2.0)])
    erasing.erase(images, indices, CLOCK, numbers)
    erased = images.any(axis=(1, 2, 3))
    assert 70 < erased.sum() < 130
    values = images[erased][images[erased].any(axis=3)]
    for channel in range(3):
        middle = values[:, channel][(values[:, channel] > 0) & (values[:, channel] < 255)]
        assert abs(np.median(values[:, channel]) - erasing.MEAN[channel]) < 2
        assert abs(middle.std() / erasing.STD[channel] - 1) < 0.12


def test_jitter_factors_are_uniform_and_strengths_of_zero_do_nothing() -> None:
    grey = np.full((DRAWS, 1, 1, 3), 100, np.uint8)
    color.jitter(grey, np.arange(DRAWS, dtype=np.uint64), CLOCK, np.array([0.4, 0.0, 0.0]))
    factors = grey[:, 0, 0, 0] / 100
    assert stats.kstest(factors, stats.uniform(0.6, 0.8).cdf).statistic < 0.03
    still = np.stack([picture()])
    color.jitter(still, np.zeros(1, np.uint64), CLOCK, np.zeros(3))
    assert (still[0] == picture()).all()


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.8, 1.0])
def test_mixup_coefficients_are_beta(alpha: float) -> None:
    drawn = [mixing.symmetric_beta(*CLOCK, np.uint64(n), alpha) for n in range(DRAWS)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_is_the_rounded_sum_and_cutmix_a_box_of_its_share() -> None:
    count = 200
    images = np.zeros((count, 20, 20, 3), np.uint8)
    images[1::2] = 200
    before = images.copy()
    coefficients = np.empty(count, np.float32)
    numbers = np.array([0.8, 1.0, 1.0, 0.5])
    mixing.mix_pairs(images, np.arange(count, dtype=np.uint64), CLOCK, coefficients, numbers)
    boxes = 0
    for row in range(count):
        own, partner = before[row, 0, 0, 0], before[row ^ 1, 0, 0, 0]
        if set(np.unique(images[row]).tolist()) <= {0, 200}:
            boxes += 1
            assert (images[row] == own).mean() == pytest.approx(coefficients[row], abs=3e-3)
        else:
            share = coefficients[row]
            expected = np.rint(share * own + (1 - share) * partner)
            assert (np.abs(images[row] - expected) < 1e-3).all()
    assert 60 < boxes < 140


def test_only_one_kind_of_mixing_and_none_at_all() -> None:
    assert Mixing(0.8, 0.0).operation(CLOCK).numbers[0][3] == 0
    assert Mixing(0.0, 1.0).operation(CLOCK).numbers[0][3] == 1
    with pytest.raises(ValueError, match=r"mixup alpha 1.5; expected 0 to 1"):
        Mixing(1.5, 0.0)
    assert Augment().operations(CLOCK) == []


def test_a_second_process_compiles_nothing() -> None:
    script = (
        "import numpy as np; from tests.convnextv2.test_augment import augmented;"
        "augmented([0, 1]);"
        "from convnextv2.data.augment import color, erasing, mixing, rand_augment;"
        "kernels = [color.jitter, erasing.erase, mixing.mix_pairs, rand_augment.rand_augment];"
        "print(*(sum(k.stats.cache_misses.values()) for k in kernels),"
        "*(sum(k.stats.cache_hits.values()) for k in kernels))"
    )
    augmented([0, 1])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"] * 4 + ["1"] * 4
