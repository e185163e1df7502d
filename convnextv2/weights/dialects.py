"""Checkpoint dialects: the same weights under the names and shapes of other libraries.

A dialect is a column of names, one for each row of `OURS`. In a name, {p} stands for weight or
bias, {s} for a stage, {d} for a stage that begins with downsampling, {b} for a block, {j} for a
layer; {e} is FCMAE's `encoder.`, or nothing. What stands in brackets is always written, and may be
absent in what is read.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from convnextv2.weights.geometry import geometry_of
from convnextv2.weights.sparse_files import densified, is_sparse
from convnextv2.weights.state import ENCODER, FCMAE_ONLY, State, WeightsError, encoder_of

Target = Literal["official", "timm", "hf"]

# timm builds these with `conv_mlp=True`: their pointwise layers are 1x1 convolutions.
TIMM_CONV_MLP = ("atto", "femto", "pico", "nano")

OURS = (
    "{e}downsample_layers.0.0.{p}",
    "{e}downsample_layers.0.1.{p}",
    "{e}downsample_layers.{d}.{j}.{p}",
    "{e}stages.{s}.{b}.dwconv.{p}",
    "{e}stages.{s}.{b}.norm.{p}",
    "{e}stages.{s}.{b}.pwconv{j}.{p}",
    "{e}stages.{s}.{b}.grn.gamma",
    "{e}stages.{s}.{b}.grn.beta",
    "norm.{p}",
    "head.{p}",
)
TIMM = (
    "stem.0.{p}",
    "stem.1.{p}",
    "stages.{d}.downsample.{j}.{p}",
    "stages.{s}.blocks.{b}.conv_dw.{p}",
    "stages.{s}.blocks.{b}.norm.{p}",
    "stages.{s}.blocks.{b}.mlp.fc{j}.{p}",
    "stages.{s}.blocks.{b}.mlp.grn.weight",
    "stages.{s}.blocks.{b}.mlp.grn.bias",
    "head.norm.{p}",
    "head.fc.{p}",
)
HF = (
    "[convnextv2.]embeddings.patch_embeddings.{p}",
    "[convnextv2.]embeddings.layernorm.{p}",
    "[convnextv2.]encoder.stages.{d}.downsampling_layer.{j}.{p}",
    "[convnextv2.]encoder.stages.{s}.layers.{b}.dwconv.{p}",
    "[convnextv2.]encoder.stages.{s}.layers.{b}.layernorm.{p}",
    "[convnextv2.]encoder.stages.{s}.layers.{b}.pwconv{j}.{p}",
    "[convnextv2.]encoder.stages.{s}.layers.{b}.grn.weight",
    "[convnextv2.]encoder.stages.{s}.layers.{b}.grn.bias",
    "[convnextv2.]layernorm.{p}",
    "classifier.{p}",
)
MMPRETRAIN = (
    "backbone.downsample_layers.0.0.{p}",
    "backbone.downsample_layers.0.1.{p}",
    "backbone.downsample_layers.{d}.{j}.{p}",
    "backbone.stages.{s}.{b}.depthwise_conv.{p}",
    "backbone.stages.{s}.{b}.norm.{p}",
    "backbone.stages.{s}.{b}.pointwise_conv{j}.{p}",
    "backbone.stages.{s}.{b}.grn.gamma",
    "backbone.stages.{s}.{b}.grn.beta",
    "backbone.norm3.{p}",
    "head.fc.{p}",
)
FIELDS = {
    "e": r"(?:encoder\.)?",
    "p": "weight|bias",
    "s": "[0-3]",
    "d": "[1-3]",
    "b": r"\d+",
    "j": "[0-2]",
}


DIALECTS = {"official": OURS, "timm": TIMM, "hf": HF, "mmpretrain": MMPRETRAIN}
# The official names once more: in training, with `encoder.` before them; and MinkowskiEngine's.
FCMAE, SPARSE = "fcmae", "official-sparse"


class Translated(NamedTuple):
    """A state under our names, and the dialect it was in."""

    state: State
    dialect: str


def to_ours(state: Mapping[str, Tensor]) -> Translated:
    """Recognise the dialect of a file's names and translate them, dtypes kept.

    FCMAE's decoder and mask token stay, and so does `encoder.` before the encoder's names.

    Raises:
        WeightsError: When it is none of the dialects, or a name has no place in one.
    """
    sparse = is_sparse(state)
    dense = densified(state) if sparse else dict(state)
    dialect = _dialect_of(dense)
    if dialect is None:
        raise WeightsError(
            f"no ConvNeXt V2 in a dialect that is known ({', '.join([*DIALECTS, FCMAE, SPARSE])}); "
            f"the names are {_some(list(state))}"
        )
    renamed = _renamed(dense, DIALECTS[dialect], OURS)
    ours = {name: _our_shape(name, value) for name, value in renamed.items()}
    if any(name.startswith(ENCODER) for name in ours):
        dialect = FCMAE
    return Translated(ours, SPARSE if sparse else dialect)


def convert(state: Mapping[str, Tensor], *, to: Target) -> State:
    """Put a state of ours under the names and shapes of another library; dtypes are kept.

    official: the names are ours. Without head, GRN's parameters are (1, 4C) as in the published
    `*_fcmae.pt`, for the official fine-tuning adds two dimensions to what it starts from. FCMAE's
    decoder stays.
    timm: what its own model of this size has, so that it loads strictly. The encoder only.
    hf: names of `ConvNextV2ForImageClassification`. The encoder only.

    Raises:
        WeightsError: When the state is no ConvNeXt V2's.
        ValueError: For another `to`.
    """
    if to not in get_args(Target):
        raise ValueError(
            f"cannot convert weights to {to!r}; choose one of {', '.join(get_args(Target))}"
        )
    geometry = geometry_of(state)
    if to == "official":
        official = _renamed(state, OURS, OURS)
        return official if geometry.num_classes else _grn_in_two_dimensions(official)
    encoder = encoder_of(state)
    if to == "timm":
        convolutions = geometry.size in TIMM_CONV_MLP
        encoder = {n: _timm_shape(n, v, convolutions) for n, v in encoder.items()}
    return _renamed(encoder, OURS, DIALECTS[to])


def _dialect_of(state: Mapping[str, Tensor]) -> str | None:
    """The dialect under whose name the stem's weight is there; it has another one in each."""
    for dialect, templates in DIALECTS.items():
        stem = _pattern(templates[0])
        if any(stem.fullmatch(name) for name in state):
            return dialect
    return None


def _our_shape(name: str, value: Tensor) -> Tensor:
    if _is_grn(name):
        return value.reshape(1, 1, 1, -1)
    if _is_pointwise(name):
        return value.flatten(1)
    # MinkowskiEngine's biases are (1, C).
    return value.flatten() if name.endswith(".bias") else value


def _grn_in_two_dimensions(state: State) -> State:
    return {
        name: value.reshape(1, -1) if _is_grn(name) and not name.startswith(FCMAE_ONLY) else value
        for name, value in state.items()
    }


def _timm_shape(name: str, value: Tensor, convolutions: bool) -> Tensor:
    if _is_grn(name):
        return value.flatten()
    return value[:, :, None, None] if convolutions and _is_pointwise(name) else value


def _is_grn(name: str) -> bool:
    return name.endswith((".grn.gamma", ".grn.beta"))


def _is_pointwise(name: str) -> bool:
    return name.endswith((".pwconv1.weight", ".pwconv2.weight"))


def _renamed(
    state: Mapping[str, Tensor], source: tuple[str, ...], target: tuple[str, ...]
) -> State:
    renamed: State = {}
    homeless = []
    for name, value in state.items():
        new = _rename(name, source, target)
        if new is None or new in renamed:
            homeless.append(name)
        else:
            renamed[new] = value
    if homeless:
        raise WeightsError(
            f"{len(homeless)} of {len(state)} names have no place in a ConvNeXt V2: "
            f"{_some(homeless)}"
        )
    return renamed


def _rename(name: str, source: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    if name.startswith(FCMAE_ONLY) and source is target:
        return name
    for theirs, template in zip(source, target, strict=True):
        if found := _pattern(theirs).fullmatch(name):
            plain = template.replace("[", "").replace("]", "")
            return plain.format(**{"e": "", **found.groupdict()})
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = template.replace(".", r"\.").replace("[", "(?:").replace("]", ")?")
    for field, values in FIELDS.items():
        pattern = pattern.replace(f"{{{field}}}", f"(?P<{field}>{values})")
    return re.compile(pattern)


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
