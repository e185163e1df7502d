"""What FCMAE asks of its input, in messages that say what was given and what would work."""

import torch
from torch import Tensor

from convnextv2.sizes import nearest_multiples


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
            f"expected floating-point images, got {images.dtype}; pixels of 0 to 255 are made "
            "such by convnextv2.tasks.Normalize"
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

    On the CPU only. An accelerator would have to be waited for in every step; there the loss comes
    out as NaN, and it is for the training loop to look at losses when it reads them anyway.
    """
    if loss.device.type != "cpu" or torch.isfinite(loss):
        return
    spoilt = (~images.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if spoilt:
        raise ValueError(
            f"the images {spoilt} of the batch hold NaN or infinity; every pixel must be finite"
        )
