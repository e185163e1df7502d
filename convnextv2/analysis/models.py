"""Models from weight files alone: the geometry is what the shapes say."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from convnextv2 import weights
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.sizes import SIZES
from convnextv2.weights import WeightsError

PATCHES_PER_SIDE = 7
"""Of an image when no size is given: 224 / 32, as in the paper."""

STEM = "downsample_layers.0.0.weight"
STAGES = 4

DECODERS = (
    # (name, what its blocks are called): the first that is found.
    ("convnext", r"decoder\.(\d+)\.dwconv\."),
    ("transformer", r"decoder\.blocks\.(\d+)\."),
    ("unet", r"decoder\.scales\.0\.(\d+)\."),
)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What names and shapes of a state tell; 0 classes mean no head, `decoder` None no decoder."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    in_channels: int
    stem_stride: int
    num_classes: int
    decoder: str | None
    decoder_dim: int
    decoder_depth: int

    @property
    def size(self) -> str:
        """Name among `convnextv2.sizes.SIZES`, or "custom"."""
        known = {(size.depths, size.dims): name for name, size in SIZES.items()}
        return known.get((self.depths, self.dims), "custom")


def geometry_of(state: Mapping[str, Tensor]) -> Geometry:
    """Read the geometry off the shapes of a classifier, an encoder or an FCMAE.

    Raises:
        WeightsError: When they are no ConvNeXt V2's.
    """
    encoder = weights.encoder_of(state)
    try:
        stem = encoder[STEM].shape
        dims = [len(encoder[f"stages.{stage}.0.pwconv2.bias"]) for stage in range(STAGES)]
    except KeyError as error:
        raise WeightsError(f"no ConvNeXt V2: there is no {error}") from error
    depths = [_blocks(encoder, rf"stages\.{stage}\.(\d+)\.") for stage in range(STAGES)]
    kind, decoder_depth = _decoder(state)
    return Geometry(
        depths=(depths[0], depths[1], depths[2], depths[3]),
        dims=(dims[0], dims[1], dims[2], dims[3]),
        in_channels=stem[1],
        stem_stride=stem[-1],
        num_classes=len(encoder["head.weight"]) if "head.weight" in encoder else 0,
        decoder=kind,
        decoder_dim=state["mask_token"].shape[1] if kind else 0,
        decoder_depth=decoder_depth,
    )


def read_encoder(path: Path) -> ConvNeXtV2:
    """The encoder of any file `convnextv2.weights` reads, without head and in eval mode."""
    state, geometry = _read(path)
    encoder = {
        name: value
        for name, value in weights.encoder_of(state).items()
        if not name.startswith(("norm.", "head."))
    }
    return _loaded(lambda: _encoder(geometry, num_classes=0), encoder)


def read_classifier(path: Path) -> ConvNeXtV2:
    """The classifier of a file, in eval mode.

    Raises:
        WeightsError: When it has no head.
    """
    state, geometry = _read(path)
    if not geometry.num_classes:
        raise WeightsError(
            f"{path} has no classifier, only an encoder; fine-tune it first and give the "
            "weights that come out"
        )
    encoder = weights.encoder_of(state)
    return _loaded(lambda: _encoder(geometry, num_classes=geometry.num_classes), encoder)


def read_fcmae(
    path: Path,
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    norm_pix_loss: bool = True,
) -> FCMAE:
    """The autoencoder of a file, in eval mode.

    Args:
        path: A pretraining's weights, ours or the official code's.
        image_size: (height, width); 7 x 7 patches if None.
        patch_size: Shapes do not tell it, for the decoder predicts pixels per site; the
            encoder's total stride if None.
        norm_pix_loss: What the model was trained with; shapes do not tell that either.

    Raises:
        WeightsError: When the file has no decoder, saying why that may be.
        ValueError: When image and patch size do not fit the encoder.
    """
    state, geometry = _read(path)
    kind = geometry.decoder
    if kind is None:
        raise WeightsError(_why_no_decoder(path, geometry))

    def build() -> FCMAE:
        encoder = _encoder(geometry, num_classes=0)
        patch = patch_size or encoder.stride
        return FCMAE(
            encoder,
            image_size=image_size or PATCHES_PER_SIDE * patch,
            patch_size=patch,
            decoder=kind,
            decoder_dim=geometry.decoder_dim,
            decoder_depth=geometry.decoder_depth,
            norm_pix_loss=norm_pix_loss,
        )

    return _loaded(build, state)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _why_no_decoder(path: Path, geometry: Geometry) -> str:
    if geometry.num_classes:
        why = "it is a classifier, whose decoder was dropped before fine-tuning"
    else:
        why = (
            "it is an encoder alone, as are the published *_fcmae.pt files: they were converted "
            "from JAX without decoder and mask token"
        )
    return (
        f"{path} has no decoder to reconstruct with: {why}. Give the checkpoint of a pretraining: "
        "our fcmae.safetensors, or a checkpoint-*.pth of the official code"
    )


def _read(path: Path) -> tuple[weights.State, Geometry]:
    state = weights.read(path)
    try:
        return state, geometry_of(state)
    except WeightsError as error:
        raise WeightsError(f"{path} holds {error}") from error


def _decoder(state: Mapping[str, Tensor]) -> tuple[str | None, int]:
    """Name in `convnextv2.sizes.DECODER_UNITS` and depth."""
    depths = {name: _blocks(state, pattern) for name, pattern in DECODERS}
    kind = next((name for name, depth in depths.items() if depth), None)
    if kind is None or "mask_token" not in state or "pred.weight" not in state:
        return None, 0
    skips = any(name.startswith("decoder.skips.") for name in state)
    return "unet-noskip" if kind == "unet" and not skips else kind, depths[kind]


def _blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def _encoder(geometry: Geometry, *, num_classes: int) -> ConvNeXtV2:
    return ConvNeXtV2(
        depths=geometry.depths,
        dims=geometry.dims,
        num_classes=num_classes,
        in_channels=geometry.in_channels,
        stem_stride=geometry.stem_stride,
    )


def _loaded(build: Callable[[], Model], state: weights.State) -> Model:
    # Built without storage: drawing initial weights takes Huge longer than reading the file. The
    # strict load below leaves no parameter as it was.
    with torch.device("meta"):
        model = build()
    model = model.to_empty(device="cpu")
    weights.load(model, state)
    return model.eval()
