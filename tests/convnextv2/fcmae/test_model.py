"""FCMAE: sites, loss, targets, masks, predictions, shapes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnextv2.fcmae import FCMAE, FCMAEOutput
from convnextv2.fcmae.masking import patches_at, patchify, sample_masks
from tests.convnextv2.fcmae.plain_fcmae import plain_fcmae
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, patches_by_hand, small_fcmae


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


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("strides_per_patch", [1, 2])
def test_both_predictions_are_the_plain_models_with_its_gradients(
    strides_per_patch: int, norm_pix_loss: bool
) -> None:
    model = small_fcmae(strides_per_patch=strides_per_patch, norm_pix_loss=norm_pix_loss)
    images, mask = noise(model, 2).requires_grad_(), masks(model, {3, 0}, {5, 1})
    plain = plain_fcmae(model, images, mask)
    patches = patches_by_hand(plain.picture, model.patch_size)
    hidden = torch.stack([patches[0, [1, 2, 4, 5]], patches[1, [0, 2, 3, 4]]])
    names, wanted = zip(*model.named_parameters(), strict=True)

    def assert_same_gradients(got: Tensor, expected: Tensor) -> None:
        pairs = [
            torch.autograd.grad(x, (images, *wanted), retain_graph=True) for x in (got, expected)
        ]
        for name, one, other in zip(("images", *names), *pairs, strict=True):
            close(one, other, name)

    every, masked = model(images, mask), model(images, mask, prediction="masked")
    close(every.prediction, patches)
    close(masked.prediction, hidden)
    for output in (every, masked):
        close(output.loss, plain.loss)
        assert torch.equal(output.mask, mask.double())
        assert_same_gradients(output.loss, plain.loss)
    # Losses of a user's own, on visible patches too.
    assert_same_gradients(every.prediction.pow(3).mean(), patches.pow(3).mean())
    assert_same_gradients(masked.prediction.pow(3).mean(), hidden.pow(3).mean())


def test_the_loss_and_its_backward_never_touch_visible_patches() -> None:
    model = small_fcmae()
    predicted: list[Tensor] = []
    reached: list[int] = []

    def watch(_: nn.Module, inputs: Any, output: Tensor) -> None:
        number = len(predicted)
        predicted.append(output)
        output.register_hook(lambda grad: reached.append(number))

    model.pred.register_forward_hook(watch)
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    model(images, mask).loss.backward()
    assert [len(rows) for rows in predicted] == [8, 4]  # Masked patches, then visible ones.
    assert reached == [0]
    predicted.clear()
    model(images, mask, prediction="masked").loss.backward()
    assert [len(rows) for rows in predicted] == [8]


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


def test_masks_come_from_pytorchs_own_generator_otherwise() -> None:
    model = small_fcmae((4, 4))
    images = noise(model, 4)
    torch.manual_seed(1)
    first, second = model(images).mask, model(images).mask
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(images).mask, first)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_masks_that_belong_to_samples_are_given(dtype: torch.dtype) -> None:
    model = small_fcmae((4, 4))
    mask = sample_masks(seed=1, epoch=2, indices=[7, 3], num_patches=16, mask_ratio=0.6)
    images = noise(model, 2)
    together = model(images, mask.to(dtype))
    assert torch.equal(together.mask, mask.double())
    # Sample 3 is masked the same way, whoever is beside it.
    alone = sample_masks(seed=1, epoch=2, indices=[3], num_patches=16, mask_ratio=0.6)
    close(model(images[1:], alone).prediction, together.prediction[1:])


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_any_ratio_hides_its_share(ratio: float) -> None:
    model = small_fcmae((4, 5), mask_ratio=ratio)
    output = model(noise(model, 2), prediction="masked")
    assert output.mask.sum(dim=1).tolist() == [20 * ratio] * 2
    assert output.prediction.shape == (2, 20 * ratio, 8 * 8 * 3)


@pytest.mark.parametrize(
    ("decoder", "dim"),
    [("convnext", 12), ("unet", 16), ("unet-noskip", 16), ("transformer", 32)],
)
def test_parameters_are_only_touched_inside_their_own_modules_forward(
    decoder: str, dim: int
) -> None:
    # ZeRO-3 has them there and nowhere else: outside, these hold NaN.
    model = small_fcmae(decoder=decoder, decoder_dim=dim)
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


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_are_flattened_as_row_column_channel(channels: int) -> None:
    images = torch.arange(2 * channels * 8 * 12).reshape(2, channels, 8, 12)
    patches = patchify(images, 4)
    for sample, patch, row, column, colour in np.ndindex(2, 6, 4, 4, channels):
        top, left = patch // 3 * 4, patch % 3 * 4
        value = patches[sample, patch, (row * 4 + column) * channels + colour]
        assert value == images[sample, colour, top + row, left + column]


def test_patches_are_picked_by_their_number_in_the_batch() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patches_by_hand(images, 4).flatten(0, 1)
    numbers = torch.tensor([11, 0, 6, 5])
    assert torch.equal(patches_at(images, numbers, 4), patches[numbers])
