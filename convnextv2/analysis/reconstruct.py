"""Reconstruction pictures: what FCMAE makes of the patches it cannot see."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnextv2.data.pixels.visible import visible
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import patchify, sample_masks, unpatchify
from convnextv2.tasks import IMAGENET, Normalization, Normalize

MASK_GREY = 128


@dataclass(frozen=True)
class Reconstruction:
    """Three pictures of each image, (N, H, W, 3) uint8, and the model's loss on all of them.

    Of images that are not RGB they show some channels (`convnextv2.data.pixels.visible`).
    """

    original: NDArray[np.uint8]
    masked: NDArray[np.uint8]
    predicted: NDArray[np.uint8]
    loss: float = math.nan


@torch.no_grad()
def reconstruct(
    model: FCMAE, images: Tensor, mask: Tensor, normalization: Normalization = IMAGENET
) -> Reconstruction:
    """Hide `mask` (N, L; 1 = masked) of `images` (N, H, W, C) and fill it in by `model`.

    Images are stored values, uint8 or uint16; `normalization` is what the model was trained with.

    With `norm_pix_loss` the model predicts patches of mean 0 and deviation 1. As in the MAE's
    visualisation, each is multiplied by the deviation of the true patch and its mean is added:
    brightness and contrast of a filled patch are the original's, only the structure is predicted.

    Visible patches are copied from the original: the model was never trained to predict them.
    """
    parameter = model.pred.weight
    images, hidden = images.to(parameter.device), mask.to(parameter.device).bool()
    normalize = Normalize(normalization).to(parameter.device)
    was_training = model.training
    model.eval()
    output = model(normalize(images, parameter.dtype), mask=hidden)
    model.train(was_training)

    # Statistics in fp32 whatever the model computes in, so that they bring back exact pixels.
    patches = patchify(normalize(images, torch.float32), model.patch_size)
    prediction = output.prediction.float()
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
    pixels = unpatchify(prediction, model.grid, model.patch_size).permute(0, 2, 3, 1)
    pixels = (pixels * normalize.std + normalize.mean).round().clamp(0, normalize.white)

    per_pixel = hidden[..., None].expand(-1, -1, model.patch_size**2)
    where = unpatchify(per_pixel, model.grid, model.patch_size).permute(0, 2, 3, 1).cpu().numpy()
    values = images.cpu().numpy()
    original = visible(values, normalization)
    filled = visible(pixels.cpu().numpy().astype(values.dtype), normalization)
    return Reconstruction(
        original=original,
        masked=np.where(where, np.uint8(MASK_GREY), original),
        predicted=np.where(where, filled, original),
        loss=float(output.loss),
    )


def reconstruct_all(
    model: FCMAE,
    batches: Iterable[Tensor],
    *,
    mask_ratio: float,
    seed: int,
    normalization: Normalization = IMAGENET,
) -> Reconstruction:
    """`reconstruct` batches (B, H, W, 3; uint8); masks depend on seed and image number only."""
    done: list[Reconstruction] = []
    count = 0
    for images in batches:
        mask = sample_masks(
            seed=seed,
            epoch=0,
            indices=range(count, count + len(images)),
            num_patches=model.grid[0] * model.grid[1],
            mask_ratio=mask_ratio,
        )
        done.append(reconstruct(model, images, mask, normalization))
        count += len(images)
    return Reconstruction(
        original=np.concatenate([part.original for part in done]),
        masked=np.concatenate([part.masked for part in done]),
        predicted=np.concatenate([part.predicted for part in done]),
        # The same number of patches is hidden in every image, so that images weigh the same.
        loss=sum(part.loss * len(part.original) for part in done) / count,
    )
