"""What FCMAE says about input and settings that do not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from convnextv2.fcmae import FCMAE
from tests.convnextv2.fcmae.small_fcmae import masks, noise, small_fcmae


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m(noise(m, 2), torch.zeros(2, 5)), r"mask must be \(2, 6\).*got \(2, 5\)"),
        (lambda m: m.encode(noise(m, 2), torch.zeros(1, 6)), r"mask must be \(2, 6\)"),
        (
            lambda m: m(noise(m, 2), masks(m, {0, 1, 2}, {3})),
            "between 1 and 3; backends 'masked-dense' and 'auto'",
        ),
        (
            lambda m: m(noise(m, 2), masks(m, {0, 1}, set(range(6)))),
            r"hides nothing of the images \[1\] .* between 1 and 5 of the 6 patches",
        ),
        (
            lambda m: m(noise(m, 3), masks(m, set(), {4}, set())),
            r"hides everything of the images \[0, 2\] .* between 1 and 5 of the 6 patches",
        ),
        (
            lambda m: m(noise(m, 2), masks(m, {0, 1, 2}, {3}), prediction="masked"),
            "hides between 3 and 5; prediction='all' takes those",
        ),
        (lambda m: m(noise(m, 2), prediction="hidden"), "'hidden' is neither 'all' nor 'masked'"),
        (lambda m: m(noise(m, 2).byte()), "floating-point images, got torch.uint8; .*Normalize"),
        (lambda m: m(noise(m, 2)[:0]), r"expected images \(B, 3, 24, 16\), got \(0, 3"),
        (lambda m: m(noise(m, 2)[0]), r"expected images \(B, 3, 24, 16\), got \(3, 24, 16\)"),
        (lambda m: m(noise(m, 2)[:, :2]), r"expected images \(B, 3, 24, 16\), got \(2, 2, 24, 16"),
        (lambda m: m(noise(m, 2)[..., :8]), r"expected images \(B, 3, 24, 16\), got .*24, 8\)"),
    ],
)
def test_wrong_input_is_refused(act: Callable[[FCMAE], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(small_fcmae((3, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("patch", [0, 5])
def test_images_that_are_not_finite_are_named(value: float, patch: int) -> None:
    model = small_fcmae()
    images, mask = noise(model, 4), masks(model, *[{0, 3}] * 4)  # 0 is seen, 5 is not.
    top, left = patch // 2 * 8, patch % 2 * 8
    images[1, 2, top + 3, left + 4] = value
    images[3, 0, top, left] = value
    with pytest.raises(ValueError, match=r"images \[1, 3\] of the batch hold NaN or infinity"):
        model(images, mask)


def test_weights_that_are_not_finite_are_not_blamed_on_the_images() -> None:
    model = small_fcmae()
    with torch.no_grad():
        model.pred.bias[0] = float("nan")  # type: ignore[index]
    assert model(noise(model, 2)).loss.isnan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 225}, "height 225 is no multiple of patch_size 32; try 224 or 256"),
        ({"image_size": (224, 20)}, "width 20 is no multiple of patch_size 32; try 32"),
        ({"patch_size": 40}, "patch_size 40 is no multiple of .* stride 32; try 32 or 64"),
        ({"image_size": 8, "patch_size": 8, "stem_stride": 1}, "single patch.*try 16"),
        ({"stem_stride": 3}, r"stem_stride 3 is not one of \(1, 2, 4\)"),
        ({"mask_ratio": 1.0}, "mask_ratio 1.0 is not between 0 and 1"),
        ({"mask_ratio": 0.0}, "mask_ratio 0.0 is not between 0 and 1"),
        ({"decoder": "vit"}, "unknown decoder 'vit'; choose one of convnext, unet, unet-noskip, t"),
        ({"decoder": "unet", "decoder_dim": 12}, "12 is no multiple of 8, as .*'unet'.* 8 or 16"),
        ({"decoder": "transformer", "decoder_dim": 20}, "no multiple of 32, .*; try 32"),
        ({"backend": "dense"}, "unknown backend 'dense'; choose one of .*gather.*masked-dense"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FCMAE.from_size("pocket", **options)


def test_an_unknown_size_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown model size 'mini'; choose one of atto, femto"):
        FCMAE.from_size("mini")
