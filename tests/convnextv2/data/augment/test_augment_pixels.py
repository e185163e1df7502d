"""Pixels of the augmentations: Pillow's, as timm and torchvision call it."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import functional

from convnextv2.data.augment import ColorJitter
from convnextv2.data.augment.geometry import FILL
from convnextv2.data.augment.rand_augment import Op, apply
from convnextv2.randomness import Draw
from tests.convnextv2.data.order import splitmix

pytestmark = pytest.mark.slow

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
# timm's list for `inc1`, in the order of `Op`.
TIMMS = dict(zip(Op, auto_augment.rand_augment_choices("", increasing=True), strict=True))
GEOMETRIC = {Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y}


def picture(seed: int = 0, height: int = 60, width: int = 72) -> Bytes:
    """Smooth, with noise, all channels different."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([rows / 9 + seed, columns / 7, (rows - columns) / 11], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 6, waves.shape)
    return np.clip(120 + 90 * np.sin(waves) + noise, 0, 255).astype(np.uint8)


def timms(op: Op, image: Bytes, level: float) -> Bytes:
    """The operation of timm at magnitude 10 x level, its random sign being the test's."""
    if op == Op.POSTERIZE and level == 1:
        # Zero bits: Pillow 12 refuses what timm may ask for, earlier ones made it black.
        return np.zeros_like(image)
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    operation = auto_augment.AugmentOp(TIMMS[op], prob=1.0, magnitude=10 * level, hparams=hparams)
    return np.asarray(operation(Image.fromarray(image)))


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
def test_an_operation_is_timms(op: Op, negative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.9 if negative else 0.1)
    changed = False
    for level, image in itertools.product(
        (0.0, 0.31, 0.77, 0.9, 0.99, 1.0), (picture(), picture(1, 33, 17))
    ):
        ours, theirs = image.copy(), timms(op, image, level)
        apply(ours, int(op), level, negative)
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= (1 if op in GEOMETRIC else 0)
        assert (difference > 0).mean() < 2e-3
        changed |= bool((ours != image).any())
    assert changed


@pytest.mark.parametrize("op", Op, ids=lambda op: op.name)
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_colour_stays_what_it_is_with_pillow(
    op: Op, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a range of nothing nor weights that miss one by a bit may change it."""
    monkeypatch.setattr(random, "random", lambda: 0.1)
    for level in np.linspace(0, 1, 23):
        flat = np.full((19, 23, 3), value, np.uint8)
        apply(flat, int(op), level, False)
        np.testing.assert_array_equal(flat, timms(op, np.full_like(flat, value), level))


def torchvisions(image: Bytes, settings: ColorJitter, sample: int) -> Bytes:
    """The four functions of torchvision on the numbers drawn for a sample."""
    first = int(Draw.COLOR_JITTER)
    order = [0, 1, 2, 3]
    for last in (3, 2, 1):
        other = int(splitmix.uniform(0, 0, sample, first + last) * (last + 1))
        order[last], order[other] = order[other], order[last]
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    bounds = [(max(0.0, 1 - s), 1 + s) for s in strengths] + [(-settings.hue, settings.hue)]
    made = Image.fromarray(image)
    for which in order:
        low, high = bounds[which]
        if low == high:  # as in its ColorJitter; a hue turned by nothing loses some bits
            continue
        factor = low + splitmix.uniform(0, 0, sample, first + 8 + which) * (high - low)
        change = (
            functional.adjust_brightness,
            functional.adjust_contrast,
            functional.adjust_saturation,
            functional.adjust_hue,
        )[which]
        made = change(made, factor)
    return np.asarray(made)


@pytest.mark.parametrize(
    "settings", [ColorJitter(), ColorJitter(1.5, 0.0, 0.8, 0.5), ColorJitter(0.0, 0.3, 0.0, 0.1)]
)
def test_jitter_is_torchvisions(settings: ColorJitter) -> None:
    images = np.stack([picture(seed) for seed in range(40)])
    expected = [torchvisions(image, settings, n) for n, image in enumerate(images)]
    code = settings.operation(np.zeros(2, np.uint64)).generate_code()
    np.testing.assert_array_equal(code(images, None, np.arange(40, dtype=np.uint64)), expected)


@pytest.mark.parametrize("hue", [0.02, 0.5])
def test_hue_of_every_kind_of_colour_is_torchvisions(hue: float) -> None:
    shades = [*range(0, 256, 5), 1, 254]
    colours = np.array(list(itertools.product(shades, repeat=3)), np.uint8)
    image = colours.reshape(1, 54, -1, 3).copy()
    sample = next(n for n in range(99) if splitmix.uniform(0, 0, n, Draw.COLOR_JITTER + 11) > 0.9)
    settings = ColorJitter(0, 0, 0, hue)
    expected = torchvisions(image[0], settings, sample)
    code = settings.operation(np.zeros(2, np.uint64)).generate_code()
    jittered = code(image, None, np.array([sample], np.uint64))[0]
    assert (expected != colours.reshape(54, -1, 3)).any()
    np.testing.assert_array_equal(jittered, expected)


def test_strengths_of_zero_do_nothing() -> None:
    images = np.stack([picture(), picture(1)])
    code = ColorJitter(0, 0, 0, 0).operation(np.zeros(2, np.uint64)).generate_code()
    result = code(images.copy(), None, np.arange(2, dtype=np.uint64))
    np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [((0.4, -0.1, 0.4, 0.0), "strengths are 0 or more"), ((0, 0, 0, 0.6), r"hue 0\.6 .* 0 to 0.5")],
)
def test_strengths_out_of_range_are_refused(
    strengths: tuple[float, float, float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ColorJitter(*strengths)
