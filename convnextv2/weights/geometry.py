"""The geometry of a model, read from the shapes of its state."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from convnextv2.sizes import SIZES
from convnextv2.weights.state import WeightsError, encoder_of

STEM = "downsample_layers.0.0.weight"
CUSTOM = "custom"

# Patterns of names that only one kind of decoder has; the numbers that they match count its depth.
# See `convnextv2.fcmae.decoders`. Only one of the two UNets has skips.
_DECODERS = (
    ("convnext", r"decoder\.(\d+)\.dwconv\."),
    ("unet", r"decoder\.scales\.0\.(\d+)\.dwconv\."),
    ("transformer", r"decoder\.blocks\.(\d+)\.qkv\."),
)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometry of a model; 0 classes means no head, an empty `decoder` means no decoder."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    in_channels: int
    stem_stride: int
    num_classes: int
    decoder: str
    decoder_dim: int
    decoder_depth: int

    @property
    def size(self) -> str:
        """Name among `convnextv2.sizes.SIZES`, or "custom"."""
        known = {(size.depths, size.dims): name for name, size in SIZES.items()}
        return known.get((self.depths, self.dims), CUSTOM)


def geometry_of(state: Mapping[str, Tensor]) -> Geometry:
    """Read the geometry off a classifier, an encoder or an FCMAE, under our names.

    Raises:
        WeightsError: When the state is not of a ConvNeXt V2.
    """
    encoder = encoder_of(state)
    depths = [_count(encoder, rf"stages\.{stage}\.(\d+)\.") for stage in range(4)]
    dims = [_channels(encoder, f"stages.{stage}.0.pwconv2.bias") for stage in range(4)]
    stem = encoder.get(STEM)
    if stem is None or stem.ndim != 4 or not all(depths) or not all(dims):
        raise WeightsError(f"no ConvNeXt V2: there is no {STEM}, or a stage without blocks")
    decoder, depth = _decoder_of(state)
    return Geometry(
        depths=(depths[0], depths[1], depths[2], depths[3]),
        dims=(dims[0], dims[1], dims[2], dims[3]),
        in_channels=stem.shape[1],
        stem_stride=stem.shape[-1],
        num_classes=_channels(encoder, "head.bias"),
        decoder=decoder,
        decoder_dim=_channels(state, "proj.bias") if decoder else 0,
        decoder_depth=depth,
    )


def why_no_decoder(geometry: Geometry) -> str:
    """Why a model cannot reconstruct images, for a message; empty if it can."""
    if geometry.decoder:
        return ""
    if geometry.num_classes:
        return "it is a classifier, whose decoder was dropped before fine-tuning"
    return (
        "it is an encoder alone, as are the published *_fcmae.pt files: they were converted from "
        "JAX without decoder and mask token"
    )


def _decoder_of(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Kind and depth; ("", 0) unless every part that reconstructing needs is there."""
    if "mask_token" not in state or "proj.bias" not in state or "pred.weight" not in state:
        return "", 0
    for kind, pattern in _DECODERS:
        depth = _count(state, pattern)
        if depth and kind == "unet" and not any(n.startswith("decoder.skips.") for n in state):
            return "unet-noskip", depth
        if depth:
            return kind, depth
    return "", 0


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def _channels(state: Mapping[str, Tensor], name: str) -> int:
    return len(state[name]) if name in state else 0
