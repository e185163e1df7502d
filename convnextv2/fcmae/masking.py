"""Masks and patches, and the checks of FCMAE's masks, images and loss.

A mask is (B, L) with 1 = masked; L patches in row-major order.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.randomness import Draw, uniform
from convnextv2.sizes import nearest_multiples, visible_count


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
    """Copy to `device`; to a GPU from page-locked memory, so that the host does not wait for it."""
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
    """The patches (N, p*p*C) of numbers `numbers` (N) among all B*L, laid out as by `patchify`."""
    rows, columns = images.shape[2] // patch_size, images.shape[3] // patch_size
    tiles = images.unflatten(3, (columns, patch_size)).unflatten(2, (rows, patch_size))
    tiles = tiles.permute(0, 2, 4, 3, 5, 1)
    inside = numbers % (rows * columns)
    where = numbers // (rows * columns), inside // columns, inside % columns
    return tiles[where].flatten(1)


def normalize_patches(patches: Tensor) -> Tensor:
    """Normalise each patch (..., p*p*C) by its mean and unbiased variance + 1e-6."""
    # LayerNorm divides by the biased variance: n / (n - 1) of it is the unbiased one.
    n = patches.shape[-1]
    biased = (n - 1) / n
    scale = patches.new_full((n,), biased**0.5)
    return F.layer_norm(patches, (n,), scale, eps=1e-6 * biased)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Inverse of `patchify`: (B, L, p*p*C) to (B, C, rows*p, columns*p)."""
    batch, (rows, columns) = patches.shape[0], grid
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch_size, columns * patch_size)


def check_geometry(height: int, width: int, patch_size: int, stride: int) -> None:
    """Raise ValueError with values that would work unless stride | patch_size | height, width.

    At least two patches are needed: one to see and one to hide.
    """
    if patch_size % stride:
        raise ValueError(
            f"patch_size {patch_size} is no multiple of the encoder's total stride {stride}; "
            f"try {nearest_multiples(patch_size, stride)}"
        )
    for name, length in (("height", height), ("width", width)):
        if length % patch_size:
            raise ValueError(
                f"image {name} {length} is no multiple of patch_size {patch_size}; "
                f"try {nearest_multiples(length, patch_size)}"
            )
    if height == width == patch_size:
        raise ValueError(
            f"an image of {height}x{width} is a single patch, nothing of it can be hidden; "
            f"try {2 * patch_size}"
        )


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless the images are (B, *shape) of a floating-point type, B > 0."""
    if images.shape[1:] != shape or len(images) == 0:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"expected images (B, {expected}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(
            f"expected floating-point images, got {images.dtype}; convnextv2.tasks.Normalize "
            "makes them of pixels from 0 to 255"
        )


def check_mask(mask: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """Return the mask as bool; raises ValueError unless it is (batch, patches of the grid)."""
    rows, columns = grid
    if mask.shape != (batch, rows * columns):
        raise ValueError(
            f"mask must be ({batch}, {rows * columns}) for a grid of {rows}x{columns} patches, "
            f"got {tuple(mask.shape)}"
        )
    return mask.bool()


def check_something_hidden_and_seen(mask: Tensor, *, alike: bool) -> None:
    """Raise ValueError when some row of the mask (B, L) hides nothing or everything.

    With `alike`, also when rows hide different numbers of patches.
    """
    counts, patches = mask.sum(dim=1).tolist(), mask.shape[1]
    for wrong, verb in ((0, "hides nothing"), (patches, "hides everything")):
        if wrong in counts:
            images = [position for position, count in enumerate(counts) if count == wrong]
            raise ValueError(
                f"the mask {verb} of the images {images} of the batch; it must hide between 1 "
                f"and {patches - 1} of the {patches} patches of every image"
            )
    if alike and len(set(counts)) > 1:
        raise ValueError(
            f"prediction='masked' needs a mask that hides equally many patches of every image, "
            f"this one hides between {min(counts)} and {max(counts)}; prediction='all' takes those"
        )


def check_finite(loss: Tensor, images: Tensor) -> None:
    """Raise ValueError naming the images with NaN or infinity, if that is what spoilt the loss.

    On the CPU only: on a GPU the check would make the host wait in every step. There the loss is
    NaN, and the training loop notices when it reads the losses.
    """
    if loss.device.type != "cpu" or torch.isfinite(loss):
        return
    spoilt = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if spoilt:
        raise ValueError(
            f"the images {spoilt} of the batch hold NaN or infinity; every pixel must be finite"
        )
