"""Models built from weight files alone: their geometry follows from the tensors' shapes."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from convnextv2 import PathLike, weights
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.tasks import IMAGENET, Normalization
from convnextv2.weights import Geometry, Inspection, WeightsError, why_no_decoder

PATCHES_PER_SIDE = 7
"""Patches along each side of an image when no size is given: 224 / 32, as in the paper."""

Model = TypeVar("Model", bound=nn.Module)


def read_encoder(source: PathLike | Inspection) -> ConvNeXtV2:
    """The encoder of any file `convnextv2.weights` reads, without head and in eval mode."""
    found = _inspected(source)
    state, geometry = found.state, found.geometry
    encoder = {
        name: value
        for name, value in weights.encoder_of(state).items()
        if not name.startswith(("norm.", "head."))
    }
    return _loaded(lambda: _encoder(geometry, num_classes=0), encoder)


def read_classifier(source: PathLike | Inspection) -> ConvNeXtV2:
    """The classifier of a file, in eval mode.

    Raises:
        WeightsError: When it has no head.
    """
    found = _inspected(source)
    state, geometry = found.state, found.geometry
    if not geometry.num_classes:
        raise WeightsError(
            f"{found.file} has no classifier, only an encoder; fine-tune it first and give the "
            "weights that come out"
        )
    encoder = weights.encoder_of(state)
    return _loaded(lambda: _encoder(geometry, num_classes=geometry.num_classes), encoder)


def read_fcmae(
    source: PathLike | Inspection,
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    norm_pix_loss: bool = True,
) -> FCMAE:
    """The autoencoder of a file, in eval mode.

    Args:
        source: A pretraining's weights, ours or the official code's.
        image_size: (height, width); 7 x 7 patches if None.
        patch_size: Shapes do not tell it, for the decoder predicts pixels per site; the
            encoder's total stride if None.
        norm_pix_loss: What the model was trained with; shapes do not tell that either.

    Raises:
        WeightsError: When the file has no decoder, saying why that may be.
        ValueError: When image and patch size do not fit the encoder.
    """
    found = _inspected(source)
    state, geometry = found.state, found.geometry
    if why := why_no_decoder(geometry):
        raise WeightsError(
            f"{found.file} has no decoder to reconstruct with: {why}. Give the checkpoint of a "
            "pretraining: our fcmae.safetensors, or a checkpoint-*.pth of the official code"
        )

    def build() -> FCMAE:
        encoder = _encoder(geometry, num_classes=0)
        patch = patch_size or encoder.stride
        return FCMAE(
            encoder,
            image_size=image_size or PATCHES_PER_SIDE * patch,
            patch_size=patch,
            decoder=geometry.decoder,
            decoder_dim=geometry.decoder_dim,
            decoder_depth=geometry.decoder_depth,
            norm_pix_loss=norm_pix_loss,
        )

    return _loaded(build, state)


def normalization_of(found: Inspection) -> Normalization:
    """The normalisation that a model expects: the file's, or ImageNet's where it has none."""
    evaluation = found.metadata.evaluation
    return IMAGENET if evaluation is None else Normalization(evaluation.mean, evaluation.std)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _inspected(source: PathLike | Inspection) -> Inspection:
    return source if isinstance(source, Inspection) else weights.inspect(source)


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
