"""Backend `masked-dense`: the whole grid is computed and masked sites are kept out. The oracle.

As in the paper's JAX snippet, features are multiplied by the mask around each depthwise
convolution and for GRN's statistics. Values at masked sites of the residual stream are meaningless,
and none of them reaches a visible site. It is plain PyTorch throughout, so that it shares nothing
with the kernels that it checks.
"""

import torch
from torch import Tensor

from convnextv2.fcmae.masking import send
from convnextv2.kernels import plain
from convnextv2.layers import patch_linear


class MaskedGrid:
    """Sites of the full grid with a visibility map per stage."""

    def __init__(
        self,
        mask: Tensor,
        grid: tuple[int, int],
        patch_size: int,
        grn_scope: str,
        device: torch.device | None = None,
    ) -> None:
        self.visible = send(~mask, device or mask.device).unflatten(1, grid)
        self.patch_size, self.grn_scope = patch_size, grn_scope

    def enter(self, images: Tensor) -> Tensor:
        """Blank the masked pixels of (B, C, H, W): (B, H, W, C)."""
        x = images.permute(0, 2, 3, 1).contiguous()
        return x.masked_fill(self._at(x) == 0, 0)

    def downsample(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return patch_linear(x, weight, bias)

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        visible = self._at(x)
        return plain.depthwise(x * visible, weight, bias) * visible, x

    def gelu_grn(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        groups = 1 if self.grn_scope == "batch" else len(x)
        return plain.gelu_grn(x, gamma, beta, groups, self._at(x))

    def to_dense(self, x: Tensor) -> Tensor:
        return x * self._at(x)

    def _at(self, x: Tensor) -> Tensor:
        """Visibility (B, H, W, 1) at the resolution of x (B, H, W, C), in its dtype."""
        side = x.shape[1] // self.visible.shape[1]
        grown = self.visible.repeat_interleave(side, 1).repeat_interleave(side, 2)
        return grown[..., None].to(x.dtype)
