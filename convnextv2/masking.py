"""Masks and patches. A mask is (B, L) with 1 = masked; L patches in row-major order."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convnextv2.randomness import Draw, uniform


def visible_count(num_patches: int, mask_ratio: float) -> int:
    """Patches left visible: floor(L x (1 - ratio)) as in the paper's code, at least one."""
    return max(1, int(num_patches * (1 - mask_ratio)))


def mask_from_noise(noise: Tensor, mask_ratio: float) -> Tensor:
    """Mask all but the `visible_count` patches with the smallest noise; (B, L) to (B, L) bool."""
    ranks = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return ranks >= visible_count(noise.shape[1], mask_ratio)


def random_mask(
    batch_size: int,
    num_patches: int,
    mask_ratio: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw a (B, L) mask from `generator` (PyTorch's global one if None)."""
    noise = torch.rand(batch_size, num_patches, generator=generator, device=device)
    return mask_from_noise(noise, mask_ratio)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`, from page-locked memory: for others a GPU's copy makes the host wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def sample_masks(
    *, seed: int, epoch: int, indices: Sequence[int] | Tensor, num_patches: int, mask_ratio: float
) -> Tensor:
    """Masks (B, L) that depend on (seed, epoch, sample index) only, not on batch or worker."""
    samples = np.asarray(indices, dtype=np.uint64)[:, None]
    patches = np.arange(num_patches, dtype=np.uint64)[None, :]
    noise = uniform(
        np.full((1, 1), seed, np.uint64),
        np.full((1, 1), epoch, np.uint64),
        samples,
        np.uint64(Draw.MASK) + patches,
    )
    return mask_from_noise(torch.from_numpy(noise), mask_ratio)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, H, W) into (B, L, p*p*C), each patch flattened as (row, column, channel)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def patches_at(images: Tensor, numbers: Tensor, patch_size: int) -> Tensor:
    """The patches (N, p*p*C) that `numbers` (N) picks of all B*L in the batch, as `patchify`'s."""
    rows, columns = images.shape[2] // patch_size, images.shape[3] // patch_size
    tiles = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    tiles = tiles.permute(0, 2, 4, 3, 5, 1)
    inside = numbers % (rows * columns)
    where = numbers // (rows * columns), inside // columns, inside % columns
    return tiles[where].flatten(1)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Inverse of `patchify`: (B, L, p*p*C) to (B, C, rows*p, columns*p)."""
    batch, (rows, columns) = patches.shape[0], grid
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)
