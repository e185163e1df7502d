"""The building blocks of ConvNeXt V2, all on channels-last tensors (..., C).

Legend: B batch, H W height and width, C channels. A layer that looks beyond a single site gets
`Sites`, which knows where the features lie: on the full grid (dense) or on visible patches only
(see `convnextv2.fcmae.sparse`). The parameters are the same ones either way. A parameter is used in
the forward of its own module only, because that is where ZeRO-3 has gathered it.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2 import kernels


class Sites(Protocol):
    """Where features lie, and the operations that look beyond a single site."""

    def enter(self, images: Tensor) -> Tensor:
        """Lay (B, C, H, W) images out on the sites."""

    def downsample(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply a convolution (O, C, k, k) of stride k; every k x k window is one new site."""

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Apply a depthwise convolution (C, 1, K, K) among the sites of each image.

        Returns the output, and x for the shortcut around the block.
        """

    def gelu_grn(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Apply GELU, then GRN with statistics over the sites of each image."""


class DenseSites:
    """Every site of (B, H, W, C) is there: the ordinary network."""

    def enter(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1)

    def downsample(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        k = weight.shape[-1]
        if torch.compiler.is_exporting():
            # torch.export cannot prove that the slices and reshapes below hold for every size.
            return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, k).permute(0, 2, 3, 1)
        # Rows and columns that fill no window are left out, as by a convolution of this stride.
        height, width = (size // k * k for size in x.shape[-3:-1])
        return patch_linear(x[..., :height, :width, :], weight, bias)

    def depthwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.depthwise(x, weight, bias)

    def gelu_grn(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return kernels.gelu_grn(x, gamma, beta, x.shape[0])  # not len: it would freeze the batch


DENSE = DenseSites()


def patch_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (..., H, W, C) by (O, C, k, k) at stride k as one matrix product.

    Windows do not overlap, so a copy that lays each out as a row replaces the convolution.
    """
    k = weight.shape[-1]
    windows = x.unflatten(-3, (-1, k)).unflatten(-2, (-1, k)).transpose(-4, -3)
    return F.linear(windows.flatten(-3), weight.permute(0, 2, 3, 1).flatten(1), bias)


class PatchConv(nn.Conv2d):
    """Convolution whose stride is its kernel size: the stem and the 2x2 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride, stride)

    def forward(self, x: Tensor, sites: Sites = DENSE) -> Tensor:
        """Map (..., H, W, C) to (..., H/stride, W/stride, O) in the layout of `sites`."""
        assert self.bias is not None
        return sites.downsample(x, self.weight, self.bias)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution, on channels-last rows of any layout."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O)."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """7x7 depthwise convolution of stride 1 that keeps the size."""

    def __init__(self, dim: int, kernel_size: int = 7) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, sites: Sites = DENSE
    ) -> tuple[Tensor, Tensor]:
        """Map (..., C) to the same shape in the layout of `sites`, and to itself.

        A block's shortcut goes on from the second: its gradient is then added to the
        convolution's in one pass (`kernels.depthwise`).
        """
        assert self.bias is not None
        return sites.depthwise(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension with the paper's eps of 1e-6; fp32 inside."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every site of (..., C)."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


class GeluGRN(nn.Module):
    """GELU and Global Response Normalization (paper, Algorithm 1) over the sites of an image.

    The published code divides by the channel mean of the norms (Eq. 2 prints the sum), keeps the
    residual and starts as the identity (gamma = beta = 0). Statistics are per image, as in the
    paper and its JAX code; the released PyTorch pretraining pooled over the whole batch. GELU is
    part of this module because both are computed in one pass over the network's widest tensor.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor, sites: Sites = DENSE) -> Tensor:
        """Map (B, ..., C) before GELU to the same shape after GRN."""
        return sites.gelu_grn(x, self.gamma, self.beta)


class LinearAfterGRN(nn.Linear):
    """Linear layer that does not keep its input: GRN recomputes it in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return kernels.linear_after_grn(x, self.weight, self.bias)


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
        self.dwconv = DepthwiseConv(dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = GeluGRN(4 * dim)
        self.pwconv2 = LinearAfterGRN(4 * dim, dim)

    def forward(self, x: Tensor, sites: Sites = DENSE) -> Tensor:
        """Map (B, ..., C) to the same shape."""
        h, shortcut = self.dwconv(x, sites)
        h = self.pwconv2(self.grn(self.pwconv1(self.norm(h)), sites))
        return shortcut + (drop_path(h, self.drop_path) if self.training else h)


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
