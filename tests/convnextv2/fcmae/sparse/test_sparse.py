"""The sparse backends against a second implementation, and what masks must keep apart."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.sparse import Backend, GRNScope, backend_of
from tests.convnextv2.fcmae.plain_fcmae import plain_fcmae
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, patches_by_hand, small_fcmae

ALL: tuple[Backend, ...] = ("gather", "spconv", "masked-dense")
every_backend = pytest.mark.parametrize("backend", ALL)


def with_backend(model: FCMAE, backend: Backend) -> FCMAE:
    model.sites = backend_of(backend)
    return model


def masked_pixels(model: FCMAE, mask: Tensor) -> Tensor:
    """(B, 1, H, W), true where a pixel is hidden."""
    patch = np.ones((1, model.patch_size, model.patch_size))
    pixels = np.kron(mask.numpy().reshape(-1, *model.grid), patch)
    return torch.from_numpy(pixels)[:, None] == 1


def gradients(loss: Tensor, images: Tensor, model: FCMAE) -> dict[str, Tensor]:
    names = ["images", *(name for name, _ in model.named_parameters())]
    return dict(zip(names, torch.autograd.grad(loss, [images, *model.parameters()]), strict=True))


def assert_equals_the_plain_model(model: FCMAE, images: Tensor, mask: Tensor) -> None:
    """Features, prediction, loss and the gradient of everything, for every backend."""
    images = images.requires_grad_()
    plain = plain_fcmae(model, images, mask)
    expected = gradients(plain.loss + plain.features.square().mean(), images, model)
    for backend in ALL:
        output = with_backend(model, backend)(images, mask)
        features = model.encode(images, mask)
        got = gradients(output.loss + features.square().mean(), images, model)

        close(output.loss, plain.loss)
        close(features, plain.features)
        close(output.prediction, patches_by_hand(plain.picture, model.patch_size))
        for name in expected:
            close(got[name], expected[name], name)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_backends_equal_the_plain_model(data: st.DataObject) -> None:
    grid = data.draw(st.tuples(st.integers(1, 3), st.integers(2, 3)), "grid")
    scope: GRNScope = data.draw(st.sampled_from(["image", "batch"]), "grn_scope")
    model = small_fcmae(
        grid,
        channels=data.draw(st.sampled_from([1, 2, 3]), "channels"),
        stem_stride=data.draw(st.sampled_from([1, 2, 4]), "stem_stride"),
        strides_per_patch=data.draw(st.sampled_from([1, 2]), "strides_per_patch"),
        norm_pix_loss=data.draw(st.booleans(), "norm_pix_loss"),
        grn_scope=scope,
    )
    patches = grid[0] * grid[1]
    visible = data.draw(st.integers(1, patches - 1), "visible")
    chosen = st.sets(st.integers(0, patches - 1), min_size=visible, max_size=visible)
    mask = masks(model, *data.draw(st.lists(chosen, min_size=1, max_size=3), "visible patches"))
    assert_equals_the_plain_model(model, noise(model, len(mask)), mask)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("strides_per_patch", [1, 2])
def test_an_empty_last_row_and_column_keep_their_place(
    scope: GRNScope, strides_per_patch: int
) -> None:
    # The original lost them: it took the grid's size from the largest coordinate it saw.
    model = small_fcmae((3, 4), strides_per_patch=strides_per_patch, grn_scope=scope)
    mask = masks(model, {0, 1, 5}, {2, 4, 6})
    assert_equals_the_plain_model(model, noise(model, 2), mask)


@pytest.mark.parametrize("backend", ["masked-dense", "auto"])
def test_images_may_show_different_numbers_of_patches(backend: Backend) -> None:
    model = with_backend(small_fcmae(), backend)
    images, mask = noise(model, 2), masks(model, {0, 3, 5}, {4})
    plain = plain_fcmae(model, images, mask)
    close(model(images, mask).loss, plain.loss)
    close(model.encode(images, mask), plain.features)


@pytest.mark.parametrize("backend", ["gather", "spconv"])
def test_the_others_refuse_them_and_say_who_takes_them(backend: Backend) -> None:
    model = with_backend(small_fcmae(), backend)
    with pytest.raises(ValueError, match="between 1 and 3; backends 'masked-dense' and 'auto'"):
        model.encode(noise(model, 2), masks(model, {0, 3, 5}, {4}))


def test_an_unknown_backend_is_told_which_there_are() -> None:
    with pytest.raises(ValueError, match="'dense'; choose one of auto, gather, spconv, masked-d"):
        backend_of("dense")


@every_backend
def test_masked_pixels_get_no_gradient_and_visible_ones_do(backend: Backend) -> None:
    model = with_backend(small_fcmae(strides_per_patch=2), backend)
    images, mask = noise(model, 2).requires_grad_(), masks(model, {0, 3}, {1, 5})
    model.encode(images, mask).square().sum().backward()
    assert images.grad is not None
    hidden = masked_pixels(model, mask).expand_as(images)
    assert (images.grad[hidden] == 0).all()
    assert (images.grad[~hidden] != 0).all()


@every_backend
def test_what_lies_under_the_mask_is_never_seen(backend: Backend) -> None:
    model = with_backend(small_fcmae(), backend)
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    blinded = images.masked_fill(masked_pixels(model, mask), float("nan"))
    encoded = model.encode(images, mask)
    assert torch.equal(model.encode(blinded, mask), encoded)
    assert not torch.equal(model.encode(images.flip(-1), mask), encoded)


@every_backend
def test_encoded_masked_sites_are_zero(backend: Backend) -> None:
    model = with_backend(small_fcmae(), backend)
    mask = masks(model, {0, 3}, {1, 5})
    empty = (model.encode(noise(model, 2), mask) == 0).all(dim=1)
    assert torch.equal(empty, mask.reshape(2, *model.grid) == 1)


@every_backend
@pytest.mark.parametrize(("scope", "depends"), [("image", False), ("batch", True)])
def test_batch_mates_matter_only_to_grn_over_the_batch(
    backend: Backend, scope: GRNScope, depends: bool
) -> None:
    model = with_backend(small_fcmae(grn_scope=scope), backend)
    images, mask = noise(model, 3), masks(model, {0, 3}, {1, 5}, {2, 4})
    alone, together = model.encode(images[:1], mask[:1]), model.encode(images, mask)[:1]
    difference = float(((alone - together).abs().max() / together.abs().max()).detach())
    assert difference > 1e-2 if depends else difference < 1e-12
