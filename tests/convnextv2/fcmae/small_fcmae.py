"""A small FCMAE in fp64 and inputs for it, shared by the tests of the model and its backends."""

from typing import Any

import torch
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE


def small_fcmae(
    grid: tuple[int, int] = (3, 2),
    *,
    channels: int = 3,
    stem_stride: int = 1,
    strides_per_patch: int = 1,
    decoder_dim: int = 12,
    **options: Any,
) -> FCMAE:
    """Four narrow stages in fp64, every parameter random so that nothing hides behind a zero."""
    torch.manual_seed(0)
    encoder = ConvNeXtV2(
        depths=(1, 1, 2, 1),
        dims=(4, 6, 8, 10),
        num_classes=0,
        in_channels=channels,
        stem_stride=stem_stride,
    )
    patch = encoder.stride * strides_per_patch
    model = FCMAE(
        encoder,
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        decoder_dim=decoder_dim,
        **options,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def noise(model: FCMAE, batch: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.encoder.in_channels, *model.image_size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def masks(model: FCMAE, *visible: set[int]) -> Tensor:
    mask = torch.ones(len(visible), model.grid[0] * model.grid[1])
    for sample, patches in enumerate(visible):
        mask[sample, list(patches)] = 0
    return mask


def close(got: Tensor, expected: Tensor, name: str = "") -> None:
    scale = float(expected.detach().abs().max()) or 1.0
    torch.testing.assert_close(
        got / scale, expected / scale, rtol=0, atol=1e-9, msg=lambda text: f"{name}: {text}"
    )


def patches_by_hand(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, L, p*p*C): patches by rows; in each row, column, channel."""
    batch, _, height, width = images.shape
    rows = [
        images[:, :, top : top + patch, left : left + patch].permute(0, 2, 3, 1).reshape(batch, -1)
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    return torch.stack(rows, dim=1)
