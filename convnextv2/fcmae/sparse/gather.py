"""Backend `gather`: visible patches are a batch of little images (B, V, s, s, C).

V visible patches per image, s x s sites in each at the current stage. Everything in the network
but the 7x7 depthwise convolution stays inside a patch (the stem and the 2x2 convolutions never
straddle one), so all of it runs on this tensor as on a smaller batch of pixels.
"""

import torch
from torch import Tensor

from convnextv2 import kernels
from convnextv2.fcmae.masking import send
from convnextv2.kernels.plain import scatter_sites, site_positions
from convnextv2.layers import patch_linear


class VisiblePatches:
    """Sites of the visible patches; every image must show the same number of them."""

    def __init__(
        self,
        mask: Tensor,
        grid: tuple[int, int],
        patch_size: int,
        grn_scope: str,
        device: torch.device | None = None,
        *,
        patches: Tensor | None = None,
    ) -> None:
        """`patches`: the mask's `visible_patches` where the images are, if they are there."""
        if patches is None:
            patches = send(visible_patches(mask), device or mask.device)
        self.patches = patches
        self.neighbours = kernels.neighbours_of(self.patches, grid)
        self.grid, self.patch_size, self.grn_scope = grid, patch_size, grn_scope

    def enter(self, images: Tensor) -> Tensor:
        """Pick the visible patches of (B, C, H, W): (B, V, p, p, C)."""
        (rows, columns), p = self.grid, self.patch_size
        tiles = images.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
        tiles = tiles.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
        return tiles[torch.arange(len(images), device=tiles.device)[:, None], self.patches]

    def downsample(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return patch_linear(x, weight, bias)

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.patch_depthwise(x, weight, bias, self.patches, self.grid, self.neighbours)

    def gelu_grn(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        groups = 1 if self.grn_scope == "batch" else len(x)
        return kernels.gelu_grn(x, gamma, beta, groups)

    def to_dense(self, x: Tensor) -> Tensor:
        return scatter_sites(x, site_positions(self.patches, self.grid, x.shape[2]), self.grid)


def visible_patches(mask: Tensor) -> Tensor:
    """Numbers (B, V) of the patches a mask (B, L) leaves visible.

    Raises:
        ValueError: When images show different numbers of patches.
    """
    counts = (~mask).sum(dim=1)
    if counts.min() != counts.max():
        raise ValueError(
            f"every image must show the same number of patches, this mask leaves between "
            f"{int(counts.min())} and {int(counts.max())}; backends 'masked-dense' and 'auto' take "
            f"those"
        )
    return (~mask).nonzero()[:, 1].reshape(len(mask), -1)
