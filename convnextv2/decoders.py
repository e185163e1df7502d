"""Decoders of FCMAE: from the encoder's visible features to a hidden map of the whole image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnextv2.layers import Block
from convnextv2.sparse import SparseSites


@dataclass(frozen=True)
class Canvas:
    """The grid of a masked batch, on which visible features are laid in their places."""

    sites: SparseSites
    hidden: Tensor
    """(B, rows, columns) bool, true where a patch is masked."""

    def fill(self, x: Tensor, token: Tensor) -> Tensor:
        """Lay out features at the sites: (B, h, w, D), `token` (D values) where nothing is seen."""
        dense = self.sites.to_dense(x)
        side = dense.shape[1] // self.hidden.shape[1]
        hidden = self.hidden.repeat_interleave(side, 1).repeat_interleave(side, 2)
        return torch.where(hidden[..., None], token.flatten().to(dense.dtype), dense)


class ConvNeXtDecoder(nn.Sequential):
    """The paper's decoder: ConvNeXt V2 blocks on the dense grid of the last stage."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__(*[Block(dim) for _ in range(depth)])
