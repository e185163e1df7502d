"""Backend `gather`: visible patches are a batch of little images (B, V, s, s, C).

V visible patches per image, s x s sites in each at the current stage. Everything in the network
but the 7x7 depthwise convolution stays inside a patch (the stem and the 2x2 convolutions never
straddle one), so all of it runs on this tensor with the encoder's own modules. For the depthwise
convolution the sites are laid on a canvas of zeros, convolved there, and picked up again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnextv2.layers import GRN, conv_channels_last


class VisiblePatches:
    """Sites of the visible patches; every image must show the same number of them."""

    def __init__(
        self, mask: Tensor, grid: tuple[int, int], patch_size: int, grn_scope: str
    ) -> None:
        counts = (~mask).sum(dim=1)
        if counts.min() != counts.max():
            raise ValueError(
                f"every image must show the same number of patches, this mask leaves between "
                f"{int(counts.min())} and {int(counts.max())}; backend 'masked-dense' takes those"
            )
        self.batch, self.visible = mask.shape[0], int(counts[0])
        self.grid, self.patch_size, self.grn_scope = grid, patch_size, grn_scope
        self.patches = (~mask).nonzero()[:, 1].reshape(self.batch, self.visible)
        self._canvases: dict[int, Canvas] = {}

    def enter(self, images: Tensor) -> Tensor:
        """Pick the visible patches of (B, C, H, W): (B, V, p, p, C)."""
        (rows, columns), p = self.grid, self.patch_size
        tiles = images.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))
        tiles = tiles.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)
        return tiles[torch.arange(self.batch, device=tiles.device)[:, None], self.patches]

    def depthwise(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        canvas = self._canvas(x.shape[2])
        return canvas.pick(conv_channels_last(conv, canvas.lay(x))).view_as(x)

    def grn(self, grn: GRN, x: Tensor) -> Tensor:
        out: Tensor = grn(x[None])[0] if self.grn_scope == "batch" else grn(x)
        return out

    def to_dense(self, x: Tensor) -> Tensor:
        return self._canvas(x.shape[2]).lay(x)

    def _canvas(self, side: int) -> "Canvas":
        if side not in self._canvases:
            self._canvases[side] = Canvas.of(self.patches, self.grid, side)
        return self._canvases[side]


@dataclass(frozen=True)
class Canvas:
    """The full grid (B, H, W) at one stage and the flat position of every visible site on it."""

    shape: tuple[int, int, int]
    positions: Tensor

    @classmethod
    def of(cls, patches: Tensor, grid: tuple[int, int], side: int) -> "Canvas":
        """Number the sites of `patches` (B, V), `side` x `side` each, on the grid of images."""
        (rows, columns), (batch, visible) = grid, patches.shape
        height, width = rows * side, columns * side
        device = patches.device
        image = torch.arange(batch, device=device).view(batch, 1, 1, 1) * (height * width)
        step = torch.arange(side, device=device)
        row = (patches // columns * side).view(batch, visible, 1, 1) + step.view(side, 1)
        column = (patches % columns * side).view(batch, visible, 1, 1) + step
        return cls((batch, height, width), (image + row * width + column).flatten())

    def lay(self, x: Tensor) -> Tensor:
        """Lay visible sites on zeros: (B, V, s, s, C) to (B, H, W, C)."""
        batch, height, width = self.shape
        flat = _Lay.apply(x.reshape(-1, x.shape[-1]), self.positions, batch * height * width)
        return flat.view(*self.shape, -1)

    def pick(self, x: Tensor) -> Tensor:
        """Pick the visible sites up: (B, H, W, C) to (B*V*s*s, C)."""
        picked: Tensor = _Pick.apply(x.reshape(-1, x.shape[-1]), self.positions)
        return picked


class _Lay(torch.autograd.Function):
    """Rows to positions of a larger zero tensor. Positions are unique, so `_Pick` is its adjoint.

    PyTorch's own backward of index_select accumulates row by row; knowing that no two rows meet
    makes both directions plain copies.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, positions: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(positions)
        return rows.new_zeros(length, rows.shape[1]).index_copy_(0, positions, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Pick.apply(grad, *ctx.saved_tensors), None, None


class _Pick(torch.autograd.Function):
    """Adjoint of `_Lay`: rows at the positions."""

    @staticmethod
    def forward(ctx: Any, canvas: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.length = canvas.shape[0]
        return canvas.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return _Lay.apply(grad.contiguous(), positions, ctx.length), None
