"""Decoders of FCMAE: from the encoder's visible features to a hidden map of the whole image.

Published: the default is one ConvNeXt V2 block of width 512 at the last stage's resolution, and
Table 1 compares it with a UNet with and without skips and with a transformer. How those two look
inside is not published. Ours are the nearest relatives: SparK's light UNet (arXiv 2301.03580),
which puts mask tokens into every scale, and MAE's decoder (arXiv 2111.06377).

Legend: B batch, h w the last stage's grid, D decoder width, C channels of a stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.fcmae.sparse import SparseSites
from convnextv2.layers import Block, LayerNorm
from convnextv2.sizes import DECODER_UNITS, nearest_multiples

HEAD_DIM = 32  # As in MAE's decoder: 16 heads of a width of 512.


@dataclass(frozen=True)
class Canvas:
    """The whole grid of a masked batch, onto which the features of visible sites are scattered."""

    sites: SparseSites
    hidden: Tensor
    """(B, rows, columns) bool, true where a patch is masked."""

    def fill(self, x: Tensor, token: Tensor) -> Tensor:
        """Scatter features to their sites: (B, h, w, D), with `token` (D) at the masked ones."""
        dense = self.sites.to_dense(x)
        side = dense.shape[1] // self.hidden.shape[1]
        hidden = self.hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)
        return torch.where(hidden[..., None], token.flatten().to(dense.dtype), dense)


class Decoder(nn.Module, ABC):
    """What FCMAE needs of a decoder besides its forward.

    Attributes:
        width: Channels of the hidden map.
        upsampling: Sites of the hidden map along one site of the encoder's last stage.
        wants_skips: Whether `forward` needs the outputs of the encoder's earlier stages.
    """

    width: int
    upsampling = 1
    wants_skips = False

    @abstractmethod
    def forward(self, x: Tensor, skips: Sequence[Tensor], canvas: Canvas) -> Tensor:
        """Decode.

        Args:
            x: The last stage, projected and with mask tokens: (B, h, w, D).
            skips: Stages 1 to 3 in the layout of `canvas.sites`, or nothing.
            canvas: The grid that both belong to.

        Returns:
            The hidden map (B, h*upsampling, w*upsampling, width).
        """


class ConvNeXtDecoder(Decoder):
    """The paper's decoder: ConvNeXt V2 blocks at the last stage's resolution."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.width = dim
        for number in range(depth):
            # Named "0", "1", ... as in the published training checkpoints.
            self.add_module(str(number), Block(dim))

    def forward(self, x: Tensor, skips: Sequence[Tensor], canvas: Canvas) -> Tensor:
        for block in self.children():
            x = block(x)
        return x


class UNetDecoder(Decoder):
    """Up to the first stage's resolution in three steps that double the sites and halve the width.

    Every scale has `depth` ConvNeXt V2 blocks, so the coarsest is the default decoder. With skips,
    the encoder's output at that scale is added before them, with a mask token of the scale's own
    at its masked sites.
    """

    upsampling = 8

    def __init__(self, dim: int, depth: int, encoder_dims: Sequence[int], *, skips: bool) -> None:
        super().__init__()
        widths = [dim, dim // 2, dim // 4, dim // 8]
        self.width, self.wants_skips = widths[-1], skips
        self.scales = nn.ModuleList(
            nn.Sequential(*[Block(width) for _ in range(depth)]) for width in widths
        )
        self.ups = nn.ModuleList(Upsample(coarse, fine) for coarse, fine in pairwise(widths))
        finer = zip(reversed(encoder_dims[:3]), widths[1:], strict=True) if skips else ()
        self.skips = nn.ModuleList(Skip(channels, width) for channels, width in finer)

    def forward(self, x: Tensor, skips: Sequence[Tensor], canvas: Canvas) -> Tensor:
        x = self.scales[0](x)
        for step, up in enumerate(self.ups):
            x = up(x)
            if self.wants_skips:
                x = x + self.skips[step](skips[2 - step], canvas)
            x = self.scales[step + 1](x)
        return x


class Upsample(nn.Module):
    """LayerNorm and a 2x2 transposed convolution of stride 2: the encoder's downsampling mirrored.

    Windows do not overlap, so it is a linear layer that makes four sites of one.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.norm = LayerNorm(coarse)
        self.expand = nn.Linear(coarse, 4 * fine)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, h, w, C) to (B, 2h, 2w, C')."""
        four = self.expand(self.norm(x)).unflatten(-1, (2, 2, -1))
        return four.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Skip(nn.Module):
    """One stage of the encoder for the decoder: norm, projection, mask token."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.proj = nn.Linear(channels, width)
        self.mask_token = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor, canvas: Canvas) -> Tensor:
        """Map the stage's output at the visible sites to its whole grid: (B, H, W, width)."""
        return canvas.fill(self.proj(self.norm(x)), self.mask_token)


class TransformerDecoder(Decoder):
    """MAE's decoder: fixed sine-cosine positions, pre-norm transformer blocks, a last LayerNorm."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.width = dim
        self.blocks = nn.Sequential(*[TransformerBlock(dim) for _ in range(depth)])
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor, skips: Sequence[Tensor], canvas: Canvas) -> Tensor:
        _, height, width, dim = x.shape
        tokens = x + sine_cosine_positions(height, width, dim, x.device).to(x.dtype)
        decoded: Tensor = self.norm(self.blocks(tokens.flatten(1, 2)))
        return decoded.unflatten(1, (height, width))


class TransformerBlock(nn.Module):
    """Self-attention over all tokens of an image, then an MLP of four times the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_DIM
        self.norm1 = LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        attended = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def sine_cosine_positions(
    height: int, width: int, dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """MAE's position table (height, width, dim): half of `dim` for the column, half for the row.

    Each half is sin(p·w_i), then cos(p·w_i), at w_i = 10000^(-i / n), i = 0 .. n - 1, n = dim / 4.
    """
    n = dim // 4
    frequencies = 10000.0 ** (-torch.arange(n, device=device) / n)

    def table(length: int) -> Tensor:
        angles = torch.arange(length, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns = table(width)[None].expand(height, -1, -1)
    rows = table(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1)


def build_decoder(name: str, *, dim: int, depth: int, encoder_dims: Sequence[int]) -> Decoder:
    """Make the decoder called `name`.

    Raises:
        ValueError: For a name that is not one of `DECODER_UNITS`, or a width it cannot have.
    """
    if name not in DECODER_UNITS:
        raise ValueError(f"unknown decoder {name!r}; choose one of {', '.join(DECODER_UNITS)}")
    unit = DECODER_UNITS[name]
    if dim % unit:
        raise ValueError(
            f"decoder_dim {dim} is no multiple of {unit}, as decoder {name!r} needs; "
            f"try {nearest_multiples(dim, unit)}"
        )
    if name == "convnext":
        return ConvNeXtDecoder(dim, depth)
    if name == "transformer":
        return TransformerDecoder(dim, depth)
    return UNetDecoder(dim, depth, encoder_dims, skips=name == "unet")
