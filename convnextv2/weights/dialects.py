"""Checkpoint dialects: the same weights under the names and shapes of other libraries.

A dialect is a column of names, one for each row of `OURS`. In a name, {p} stands for weight or
bias, {s} for a stage, {d} for a stage that begins with downsampling, {b} for a block, {j} for a
layer; {e} is FCMAE's `encoder.`, or nothing. What stands in brackets is always written, but may be
missing in a file that is read.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Literal, get_args

from torch import Tensor

from convnextv2.weights.geometry import geometry_of
from convnextv2.weights.state import FCMAE_ONLY, State, WeightsError, encoder_of

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


def convert(state: Mapping[str, Tensor], *, to: Target) -> State:
    """Convert a state from our names to names and shapes of another library; dtypes are kept.

    official: the same names as ours. Without head, GRN's parameters are (1, 4C) as in the published
    `*_fcmae.pt`, because the official fine-tuning adds two dimensions. FCMAE's decoder stays.
    timm: shapes of timm's own model of this size, so that it loads strictly. The encoder only.
    hf: names of `ConvNextV2ForImageClassification`. The encoder only.

    Raises:
        WeightsError: When the state is not of a ConvNeXt V2, or for timm, which has no such model,
            when the stem's stride is 2.
        ValueError: For an unknown `to`.
    """
    if to not in get_args(Target):
        raise ValueError(
            f"cannot convert weights to {to!r}; choose one of {', '.join(get_args(Target))}"
        )
    geometry = geometry_of(state)
    if to == "official":
        official = renamed(state, OURS, OURS)
        return official if geometry.num_classes else _grn_in_two_dimensions(official)
    encoder = encoder_of(state)
    if to == "timm":
        if geometry.stem_stride == 2:
            raise WeightsError(
                "timm has no ConvNeXt V2 with a stem of stride 2: it puts another downsampling "
                "behind such a stem, whatever arguments it gets; hf and official would work"
            )
        convolutions = geometry.size in TIMM_CONV_MLP
        encoder = {n: _timm_shape(n, v, convolutions) for n, v in encoder.items()}
    return renamed(encoder, OURS, DIALECTS[to])


def _grn_in_two_dimensions(state: State) -> State:
    return {
        name: value.reshape(1, -1) if is_grn(name) and not name.startswith(FCMAE_ONLY) else value
        for name, value in state.items()
    }


def _timm_shape(name: str, value: Tensor, convolutions: bool) -> Tensor:
    if is_grn(name):
        return value.flatten()
    return value[:, :, None, None] if convolutions and is_pointwise(name) else value


def is_grn(name: str) -> bool:
    return name.endswith((".grn.gamma", ".grn.beta"))


def is_pointwise(name: str) -> bool:
    return name.endswith((".pwconv1.weight", ".pwconv2.weight"))


def renamed(state: Mapping[str, Tensor], source: tuple[str, ...], target: tuple[str, ...]) -> State:
    translated: State = {}
    homeless = []
    for name, value in state.items():
        new = rename(name, source, target)
        if new is None or new in translated:
            homeless.append(name)
        else:
            translated[new] = value
    if homeless:
        raise WeightsError(
            f"{len(homeless)} of {len(state)} names have no place in a ConvNeXt V2: "
            f"{some(homeless)}"
        )
    return translated


def rename(name: str, source: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    if name.startswith(FCMAE_ONLY) and source is target:
        return name
    for theirs, template in zip(source, target, strict=True):
        if found := pattern(theirs).fullmatch(name):
            plain = template.replace("[", "").replace("]", "")
            return plain.format(**{"e": "", **found.groupdict()})
    return None


@cache
def pattern(template: str) -> re.Pattern[str]:
    expression = template.replace(".", r"\.").replace("[", "(?:").replace("]", ")?")
    for field, values in FIELDS.items():
        expression = expression.replace(f"{{{field}}}", f"(?P<{field}>{values})")
    return re.compile(expression)


def some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
