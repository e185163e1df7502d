"""The building blocks of ConvNeXt V2, all on channels-last tensors (..., C).

Legend: B batch, H W height and width, C channels. A block sees its tensor through `Sites`,
which knows where the features lie: on the full grid (dense) or on visible patches only
(see `convnextv2.sparse`). The parameters are the same ones either way.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension with the paper's eps of 1e-6; fp32 inside."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)


class GRN(nn.Module):
    """Global Response Normalization (paper, Algorithm 1) over all but the first and last dimension.

    The published code divides by the channel mean of the norms (Eq. 2 prints the sum), keeps the
    residual and starts as the identity (gamma = beta = 0). Statistics are per image, as in the
    paper and its JAX code; the released PyTorch pretraining pooled over the whole batch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalise (B, ..., C); `visible` (B, ..., 1) restricts the statistics to its ones."""
        counted = x if visible is None else x * visible
        norm = torch.linalg.vector_norm(
            counted, dim=tuple(range(1, x.ndim - 1)), keepdim=True, dtype=_statistics_dtype(x)
        )
        response = (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)).to(x.dtype)
        # gamma·(x·N) + beta + x, with the two products of x folded into one.
        return torch.addcmul(self.beta, x, 1 + self.gamma * response)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class Sites(Protocol):
    """Where features lie, and the two operations that look beyond a single site."""

    def depthwise(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Apply a depthwise convolution among the sites of each image."""

    def grn(self, grn: GRN, x: Tensor) -> Tensor:
        """Apply GRN with statistics over the sites of each image."""

    def enter(self, images: Tensor) -> Tensor:
        """Lay (B, C, H, W) images out on the sites."""


class DenseSites:
    """Every site of (B, H, W, C) is there: the ordinary network."""

    def depthwise(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return conv_channels_last(conv, x)

    def grn(self, grn: GRN, x: Tensor) -> Tensor:
        out: Tensor = grn(x)
        return out

    def enter(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).contiguous()


DENSE = DenseSites()


def conv_channels_last(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Run `conv` on (..., H, W, C), leading dimensions folded into the batch.

    The permuted view is what PyTorch calls channels_last. On CPU this matters: the depthwise
    backward takes a path up to 1,000 times slower when input and gradient are contiguous NCHW.
    """
    out = conv(x.flatten(0, -4).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out.unflatten(0, x.shape[:-3])


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: drop whole samples of (B, ...), scale the others (arXiv 1603.09382)."""
    if rate == 0.0:
        return x
    kept = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return x * kept.bernoulli_(1 - rate).div_(1 - rate)


class Block(nn.Module):
    """ConvNeXt V2 block: 7x7 depthwise, LayerNorm, C to 4C, GELU, GRN, 4C to C, residual."""

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, sites: Sites = DENSE) -> Tensor:
        """Map (B, ..., C) to the same shape."""
        h = self.norm(sites.depthwise(self.dwconv, x))
        h = sites.grn(self.grn, F.gelu(self.pwconv1(h)))
        h = self.pwconv2(h)
        return x + (drop_path(h, self.drop_path) if self.training else h)


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Truncated normal weights and zero biases for every convolution and linear layer.

    The released FCMAE re-initialised depthwise and linear weights with std 1.0 by accident
    (initial loss about 17 instead of 1); here it is 0.02 everywhere.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
