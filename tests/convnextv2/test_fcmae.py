"""FCMAE: sites, loss, targets, shapes, and what is said about bad input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnextv2.fcmae import FCMAE, FCMAEOutput
from convnextv2.masking import patchify
from tests.convnextv2.small_fcmae import masks, noise, patches_by_hand, small_fcmae


def test_at_224_a_mask_hides_30_of_49_patches_and_the_stages_see_the_published_sites() -> None:
    model = FCMAE.from_size("pocket", stem_stride=4, decoder_dim=8)
    assert (model.image_size, model.patch_size, model.mask_ratio) == ((224, 224), 32, 0.6)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        output = model(images, generator=torch.Generator().manual_seed(0))
        assert output.mask.sum(dim=1).tolist() == [30, 30]
        sites = model.sites(output.mask.bool(), model.grid, model.patch_size, "image")
        stages = list(model.encoder.stage_features(images, sites))
        encoded = model.encode(images, output.mask)
    assert [stage[0, ..., 0].numel() for stage in stages] == [1216, 304, 76, 19]
    assert encoded.shape == (2, 128, 7, 7)
    assert (encoded != 0).any(dim=1).sum(dim=(1, 2)).tolist() == [19, 19]


@pytest.mark.parametrize(
    ("size", "image_size", "patch", "stem_stride"),
    [("pocket", 32, 8, 1), ("pocket", 96, 32, 4), ("atto", 128, 32, 4)],
)
def test_the_loss_starts_at_one(size: str, image_size: int, patch: int, stem_stride: int) -> None:
    # The original's accidental init (std 1.0) starts at about 17.
    torch.manual_seed(0)
    model = FCMAE.from_size(size, image_size=image_size, patch_size=patch, stem_stride=stem_stride)
    with torch.inference_mode():
        loss = model(torch.randn(4, 3, image_size, image_size)).loss
    assert 0.9 < float(loss) < 1.1


def test_targets_are_normalised_by_the_unbiased_variance_of_the_patch() -> None:
    model = small_fcmae(strides_per_patch=2)
    images = noise(model, 2) * 3 + 5
    patches = patches_by_hand(images, model.patch_size).numpy()
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, ddof=1, keepdims=True)
    expected = (patches - mean) / np.sqrt(variance + 1e-6)
    np.testing.assert_allclose(model.target(images).numpy(), expected, rtol=0, atol=1e-12)
    plain = small_fcmae(strides_per_patch=2, norm_pix_loss=False).target(images).numpy()
    np.testing.assert_array_equal(plain, patches)


def test_targets_stay_in_fp32_when_the_images_are_in_bf16() -> None:
    model = small_fcmae()
    images = noise(model, 1).to(torch.bfloat16)
    target = model.target(images)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, model.target(images.float()), rtol=0, atol=0)


def test_a_patch_without_contrast_is_no_division_by_zero() -> None:
    model = small_fcmae()
    images = torch.full((1, 3, *model.image_size), 7.0, dtype=torch.float64, requires_grad=True)
    loss = model(images, masks(model, {0, 1})).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_counts_masked_patches_only() -> None:
    model = small_fcmae()
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    target = model.target(images)
    visible_wrong = torch.where(mask[..., None] == 0, target + 100, target)
    assert model.loss(images, visible_wrong, mask).item() == 0
    one_wrong = target.clone()
    one_wrong[1, 2] += 2  # One of the 8 masked patches of the batch, off by 2 everywhere.
    assert model.loss(images, one_wrong, mask).item() == pytest.approx(4 / 8)


def test_the_output_has_the_shapes_of_the_contract() -> None:
    model = small_fcmae((3, 2), strides_per_patch=2, channels=2)
    output = model(noise(model, 4))
    assert isinstance(output, FCMAEOutput)
    assert output.loss.shape == ()
    assert output.prediction.shape == (4, 6, 16 * 16 * 2)
    assert output.mask.shape == (4, 6)
    assert set(output.mask.unique().tolist()) == {0, 1}
    assert model.encode(noise(model, 4), output.mask).shape == (4, 10, 6, 4)


def test_masks_come_from_the_generator_and_differ_between_images() -> None:
    model = small_fcmae((4, 4))
    images = noise(model, 4)

    def drawn(seed: int) -> Tensor:
        mask: Tensor = model(images, generator=torch.Generator().manual_seed(seed)).mask
        return mask

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert len(drawn(1).unique(dim=0)) > 1


def test_parameters_are_only_touched_inside_their_own_modules_forward() -> None:
    # ZeRO-3 has them there and nowhere else: outside, these hold NaN.
    model = small_fcmae()
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    expected = model(images, mask).prediction
    values = {p: p.detach().clone() for p in model.parameters()}

    def present(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data.copy_(values[parameter])

    def absent(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data.fill_(float("nan"))

    for module in model.modules():
        absent(module)
        module.register_forward_pre_hook(present)
        module.register_forward_hook(absent)
    with torch.no_grad():
        assert torch.equal(model(images, mask).prediction, expected)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m(noise(m, 2), torch.zeros(2, 5)), r"mask must be \(2, 6\).*got \(2, 5\)"),
        (lambda m: m.encode(noise(m, 2), torch.zeros(1, 6)), r"mask must be \(2, 6\)"),
        (
            lambda m: m(noise(m, 2), masks(m, {0, 1, 2}, {3})),
            "between 1 and 3; backend 'masked-dense'",
        ),
        (lambda m: m(noise(m, 2)[:, :2]), r"expected images \(B, 3, 24, 16\), got \(2, 2, 24, 16"),
        (lambda m: m(noise(m, 2)[..., :8]), r"expected images \(B, 3, 24, 16\), got .*24, 8\)"),
    ],
)
def test_wrong_input_is_refused(act: Callable[[FCMAE], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(small_fcmae((3, 2)))


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
        ({"backend": "dense"}, "unknown backend 'dense'; choose one of gather, masked-dense"),
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


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_flattened_as_row_column_channel(channels: int) -> None:
    images = torch.arange(2 * channels * 8 * 12).reshape(2, channels, 8, 12)
    patches = patchify(images, 4)
    for sample, patch, row, column, colour in np.ndindex(2, 6, 4, 4, channels):
        top, left = patch // 3 * 4, patch % 3 * 4
        value = patches[sample, patch, (row * 4 + column) * channels + colour]
        assert value == images[sample, colour, top + row, left + column]
