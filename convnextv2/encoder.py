"""ConvNeXt V2 encoder and classifier; module names are those of the published checkpoints."""

from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convnextv2.layers import DENSE, Block, LayerNorm, PatchConv, Sites, init_weights
from convnextv2.sizes import size_of

DOWNSAMPLING_AFTER_STEM = 8
STEM_STRIDES = (1, 2, 4)


class ConvNeXtV2(nn.Module):
    """Four stages of blocks behind a patchify stem; total stride is 8 x `stem_stride`.

    Args:
        depths: Blocks per stage.
        dims: Channels per stage.
        num_classes: Classes of the head; with 0 there is no final norm and no head (FCMAE).
        in_channels: Channels of the images.
        stem_stride: Kernel and stride of the stem: 4 as published, 1 or 2 for small images.
        drop_path: Stochastic depth rate of the last block; it grows linearly from 0 at the first.
        head_init_scale: Factor on the initial head weights (0.001 when fine-tuning, Table 9).
        checkpoint_stages: Stages (0 to 3) whose blocks keep only their input in training and are
            computed a second time in the backward pass: less memory, the same gradients.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem_stride: int = 4,
        drop_path: float = 0.0,
        head_init_scale: float = 1.0,
        checkpoint_stages: Collection[int] = (),
    ) -> None:
        super().__init__()
        if stem_stride not in STEM_STRIDES:
            raise ValueError(f"stem_stride {stem_stride} is not one of {STEM_STRIDES}")
        if not set(checkpoint_stages) <= set(range(4)):
            raise ValueError(f"checkpoint_stages {checkpoint_stages} are not among 0, 1, 2, 3")
        self.depths, self.dims, self.in_channels = depths, dims, in_channels
        self.checkpoint_stages = frozenset(checkpoint_stages)
        self.stride = DOWNSAMPLING_AFTER_STEM * stem_stride
        stem = nn.Sequential(PatchConv(in_channels, dims[0], stem_stride), LayerNorm(dims[0]))
        between = [
            nn.Sequential(LayerNorm(dims[i]), PatchConv(dims[i], dims[i + 1], 2)) for i in range(3)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        # On the CPU by name, so that the model can be built under torch.device("meta").
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(*[Block(dim, next(rates)) for _ in range(depth)])
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.norm = LayerNorm(dims[-1]) if num_classes else None
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else None
        init_weights(self)
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    @classmethod
    def from_size(
        cls,
        size: str,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem_stride: int = 4,
        drop_path: float = 0.0,
        head_init_scale: float = 1.0,
        checkpoint_stages: Collection[int] = (),
    ) -> Self:
        """Build one of `convnextv2.sizes.SIZES` by name."""
        chosen = size_of(size)
        return cls(
            depths=chosen.depths,
            dims=chosen.dims,
            num_classes=num_classes,
            in_channels=in_channels,
            stem_stride=stem_stride,
            drop_path=drop_path,
            head_init_scale=head_init_scale,
            checkpoint_stages=checkpoint_stages,
        )

    def stage_features(self, images: Tensor, sites: Sites = DENSE) -> list[Tensor]:
        """Return the output of each stage in the layout of `sites`, dense: (B, h, w, C_stage)."""
        x = sites.enter(images)
        outputs = []
        layers = zip(self.downsample_layers, self.stages, strict=True)
        for stage, (downsample, blocks) in enumerate(layers):
            for layer in downsample.children():
                x = layer(x, sites) if isinstance(layer, PatchConv) else layer(x)
            for block in blocks.children():
                if stage in self.checkpoint_stages and torch.is_grad_enabled():
                    x = checkpoint(block, x, sites, use_reentrant=False)
                else:
                    x = block(x, sites)
            outputs.append(x)
        return outputs

    def features(self, images: Tensor, sites: Sites = DENSE) -> Tensor:
        """Return the last stage's output in the layout of `sites`."""
        return self.stage_features(images, sites)[-1]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the four stages, on the full grid and on visible sites alike (torch.compile).

        This is done in place and parameters keep their names, so checkpoints do not change.
        """
        compiled = torch.compile(self.stage_features, *args, **kwargs)
        self.stage_features = compiled  # type: ignore[method-assign]

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, num_classes), or without head to (B, C4, H/stride, W/stride).

        Height and width are rounded down at the stem and between stages, as timm and Hugging Face
        do; nothing is padded.

        Raises:
            ValueError: For other channels, or images smaller than one stride.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images (B, {self.in_channels}, H, W), got {tuple(images.shape)}"
            )
        height, width = images.shape[-2:]
        if height < self.stride or width < self.stride:
            raise ValueError(
                f"image {height}x{width} is smaller than the total stride {self.stride}; "
                f"{self.stride}x{self.stride} and more would work"
            )
        x = self.features(images)
        if self.norm is None or self.head is None:
            return x.permute(0, 3, 1, 2)
        logits: Tensor = self.head(self.norm(x.mean(dim=(1, 2))))
        return logits
