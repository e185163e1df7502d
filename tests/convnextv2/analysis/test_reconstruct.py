"""Reconstruction pictures: scale, pasting and masking, with predictions made by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnextv2.analysis.reconstruct import MASK_GREY, reconstruct, reconstruct_all
from convnextv2.fcmae import FCMAE, FCMAEOutput
from convnextv2.tasks import Normalize

HEIGHT, WIDTH, PATCH = 16, 24, 8


def model_that_predicts(
    monkeypatch: pytest.MonkeyPatch, prediction: Tensor, *, norm_pix_loss: bool
) -> FCMAE:
    model = FCMAE.from_size(
        "pocket",
        image_size=(HEIGHT, WIDTH),
        patch_size=PATCH,
        stem_stride=1,
        decoder_dim=8,
        norm_pix_loss=norm_pix_loss,
    )

    def forward(images: Tensor, mask: Tensor, **_: Any) -> FCMAEOutput:
        assert images.shape == (len(prediction), 3, HEIGHT, WIDTH)
        return FCMAEOutput(torch.zeros(()), prediction, mask)

    monkeypatch.setattr(model, "forward", forward)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    images[0, :PATCH, :PATCH] = 77  # A patch without contrast, as the background of a photograph.
    return images, torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 0, 1]])


def patch_of(pictures: np.ndarray[Any, Any], sample: int, patch: int) -> np.ndarray[Any, Any]:
    row, column = divmod(patch, WIDTH // PATCH)
    return pictures[sample, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_is_the_original(
    monkeypatch: pytest.MonkeyPatch, norm_pix_loss: bool
) -> None:
    images, mask = inputs()
    model = model_that_predicts(monkeypatch, torch.empty(0), norm_pix_loss=norm_pix_loss)
    target = model.target(Normalize()(images, torch.float32))
    model = model_that_predicts(monkeypatch, target, norm_pix_loss=norm_pix_loss)

    pictures = reconstruct(model, images, mask)

    assert pictures.predicted.dtype == np.uint8
    np.testing.assert_array_equal(pictures.original, images.numpy())
    np.testing.assert_array_equal(pictures.predicted, images.numpy())


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_visible_patches_are_the_originals_and_masked_ones_grey(
    monkeypatch: pytest.MonkeyPatch, norm_pix_loss: bool
) -> None:
    images, mask = inputs()
    wild = torch.full((3, 6, PATCH * PATCH * 3), 1e4)
    model = model_that_predicts(monkeypatch, wild, norm_pix_loss=norm_pix_loss)

    pictures = reconstruct(model, images, mask)

    for sample, patch in np.ndindex(3, 6):
        original = patch_of(images.numpy(), sample, patch)
        if mask[sample, patch]:
            assert (patch_of(pictures.masked, sample, patch) == MASK_GREY).all()
            assert (patch_of(pictures.predicted, sample, patch) == 255).all()
        else:
            np.testing.assert_array_equal(patch_of(pictures.masked, sample, patch), original)
            np.testing.assert_array_equal(patch_of(pictures.predicted, sample, patch), original)


def test_without_structure_a_normalised_patch_is_its_mean_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, mask = inputs()
    images = images[..., :1].expand(-1, -1, -1, 3).contiguous()
    model = model_that_predicts(monkeypatch, torch.zeros(3, 6, 192), norm_pix_loss=True)
    normalised = Normalize()(images, torch.float32).permute(0, 2, 3, 1).numpy()

    predicted = reconstruct(model, images, mask).predicted

    back = Normalize()
    for sample, patch in np.argwhere(mask.numpy()):
        mean = torch.tensor(patch_of(normalised, sample, patch).mean())
        colour = (mean * back.std + back.mean).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(
            patch_of(predicted, sample, patch), np.broadcast_to(colour, (PATCH, PATCH, 3))
        )


def test_a_real_model_sees_what_the_mask_leaves_and_keeps_its_mode() -> None:
    torch.manual_seed(0)
    model = FCMAE.from_size(
        "pocket", image_size=(HEIGHT, WIDTH), patch_size=PATCH, stem_stride=1, decoder_dim=8
    ).to(torch.bfloat16)
    images, mask = inputs()

    def predicted_with(mirrored_patch: int | None) -> np.ndarray[Any, Any]:
        # A mirrored patch keeps its mean and deviation, the only things a masked one may tell.
        changed = images.clone()
        if mirrored_patch is not None:
            patch = patch_of(changed.numpy(), 0, mirrored_patch)
            patch[:] = patch[::-1, ::-1].copy()
        pictures = reconstruct(model, changed, mask)
        return np.stack([patch_of(pictures.predicted, 0, hidden) for hidden in (0, 2, 3, 5)])

    np.testing.assert_array_equal(predicted_with(2), predicted_with(None))
    assert not np.array_equal(predicted_with(1), predicted_with(None))
    assert model.training


def test_the_batches_images_come_in_make_no_difference() -> None:
    torch.manual_seed(0)
    model = FCMAE.from_size(
        "pocket", image_size=(HEIGHT, WIDTH), patch_size=PATCH, stem_stride=1, decoder_dim=8
    ).double()
    images, _ = inputs()
    whole = reconstruct_all(model, [images], mask_ratio=0.6, seed=4)
    parts = reconstruct_all(model, [images[:1], images[1:]], mask_ratio=0.6, seed=4)
    for kind in ("original", "masked", "predicted"):
        np.testing.assert_array_equal(getattr(parts, kind), getattr(whole, kind))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-9)

    hidden = (whole.masked == MASK_GREY).all(axis=-1)
    mask = torch.tensor([[bool(patch_of(hidden, n, p).all()) for p in range(6)] for n in range(3)])
    assert mask.sum(dim=1).tolist() == [4, 4, 4]
    expected = model(Normalize()(images, torch.float64), mask).loss
    assert whole.loss == pytest.approx(float(expected.detach()), rel=1e-9)
    other = reconstruct_all(model, [images], mask_ratio=0.6, seed=5)
    assert not np.array_equal(other.masked, whole.masked)
