"""Feature collapse: how alike the channels of each block are (paper, section 4, Fig. 2 and 3)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.layers import Block
from convnextv2.tasks import IMAGENET, Normalization, Normalize

DEAD = 1e-15
"""Largest norm that counts as zero: the squares of such values underflow in fp32."""

See = Callable[[str, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class BlockCollapse:
    """The 4C features of one block, averaged over images.

    Args:
        block: Its name in the weight file, such as "stages.2.5".
        position: Its place among all blocks, from 0 (first) to 1 (last).
        channels: 4C.
        distance: `channel_distance`; None if every channel was zero on every image.
        dead: Fraction of the channels that are zero at every site of an image.
    """

    block: str
    position: float
    channels: int
    distance: float | None
    dead: float


def channel_distance(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean pair-wise cosine distance of the channels of (B, H, W, C), and the dead fraction, (B,).

    The paper's measure (arXiv 2301.00808, section 4): with X_i the map of channel i as a vector of
    H*W numbers, 1/C^2 times the sum over all i and j of (1 - cos(X_i, X_j)) / 2. All pairs count,
    a channel with itself (distance 0) too. 0 means that all channels point the same way, the
    features have collapsed; about 0.5 that they are unrelated.

    The C x C matrix is not needed: the cosines add up to |sum_i X_i/|X_i||^2, in time C*H*W.

    A channel that is zero everywhere (norm up to `DEAD`) has no direction. The paper does not say
    how to count it. Here it is left out of the pairs (C counts the others) and reported as dead:
    counted as unrelated to all others, it would make a layer without signal look diverse. The
    distance of an image on which every channel is dead is NaN.
    """
    maps = features.flatten(1, -2).to(torch.promote_types(features.dtype, torch.float32))
    norms = torch.linalg.vector_norm(maps, dim=1)
    alive = norms > DEAD
    per_norm = torch.where(alive, 1 / norms, 0)
    total = torch.einsum("bnc,bc->bn", maps, per_norm).double()
    pairs = alive.sum(dim=1).double().square()
    distance = (1 - total.square().sum(dim=1) / pairs) / 2
    # Rounding must not make a distance negative; NaN stays NaN.
    return distance.clamp(min=0), 1 - alive.double().mean(dim=1)


class CollapseMeter:
    """Measures `model` block by block on the batches it is shown."""

    def __init__(self, model: ConvNeXtV2, normalization: Normalization = IMAGENET) -> None:
        self.model, self.normalization = model, normalization
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._channels: dict[str, int] = {}

    def show(self, images: Tensor) -> None:
        """Measure on (B, H, W, 3) uint8 images, all of them visible to the model."""

        def measure(name: str, features: Tensor) -> None:
            distance, dead = channel_distance(features)
            self._seen.setdefault(name, []).append((distance.cpu(), dead.cpu()))
            self._channels[name] = features.shape[-1]

        with watching(self.model, measure):
            run(self.model, images, self.normalization)

    def result(self) -> list[BlockCollapse]:
        """The mean over all images so far, from the first block to the last."""
        last = max(1, len(self._seen) - 1)
        measured = []
        for number, (name, batches) in enumerate(self._seen.items()):
            distance, dead = (torch.cat(values) for values in zip(*batches, strict=True))
            mean = float(distance.nanmean())
            measured.append(
                BlockCollapse(
                    block=name,
                    position=number / last,
                    channels=self._channels[name],
                    distance=None if np.isnan(mean) else mean,
                    dead=float(dead.mean()),
                )
            )
        return measured


def activation_maps(
    model: ConvNeXtV2,
    images: Tensor,
    block: str,
    channels: int = 64,
    normalization: Normalization = IMAGENET,
) -> NDArray[np.float32]:
    """Maps (B, channels, h, w) of `block` on (B, H, W, 3) uint8 images.

    Channels are taken at equal distances among the 4C; fewer if there are fewer.
    """
    seen: list[Tensor] = []

    def keep(name: str, features: Tensor) -> None:
        if name == block:
            count = min(channels, features.shape[-1])
            chosen = torch.arange(count, device=features.device) * features.shape[-1] // count
            seen.append(features[..., chosen].permute(0, 3, 1, 2).float().cpu())

    with watching(model, keep):
        run(model, images, normalization)
    return cast(NDArray[np.float32], seen[0].numpy())


def block_names(model: ConvNeXtV2) -> list[str]:
    """Names of all blocks from first to last, such as "stages.2.5"."""
    return [name for name, module in model.named_modules() if isinstance(module, Block)]


def block_named(model: ConvNeXtV2, block: str | None) -> str:
    """`block` if `model` has it; for None the last one of its third stage.

    That one is deep, and its maps are still large enough to look at.

    Raises:
        ValueError: Naming the blocks there are, when `block` is none of them.
    """
    names = block_names(model)
    if block is None:
        return [name for name in names if name.startswith("stages.2.")][-1]
    if block not in names:
        raise ValueError(f"there is no block {block!r}; choose one of {', '.join(names)}")
    return block


@contextmanager
def watching(model: nn.Module, see: See) -> Iterator[None]:
    """Within, `see` gets every block's name and 4C features (B, h, w, 4C): those behind GRN."""

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: see(name, output)

    handles = [
        module.grn.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, Block)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: ConvNeXtV2, images: Tensor, normalization: Normalization) -> None:
    """Send (B, H, W, 3) uint8 images through `model`, on its device and in its dtype."""
    parameter = next(model.parameters())
    normalize = Normalize(normalization).to(parameter.device)
    model(normalize(images.to(parameter.device), parameter.dtype))
