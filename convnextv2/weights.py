"""Weight files: reading, explaining what does not fit, and names of other libraries."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]

FCMAE_ONLY = ("mask_token", "proj.", "decoder.", "pred.")


class WeightsError(ValueError):
    """A weight file cannot be read, or is of another model."""


def read(path: Path) -> State:
    """Read a safetensors file; an FCMAE file yields encoder and decoder under its own names.

    Raises:
        WeightsError: When it is missing, damaged or no safetensors file.
    """
    if not path.exists():
        raise WeightsError(f"weight file {path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is no readable safetensors file: {error}") from error


def encoder_of(state: Mapping[str, Tensor]) -> State:
    """The encoder alone, under the names of the published dense checkpoints."""
    if any(name.startswith("encoder.") for name in state):
        return {
            name.removeprefix("encoder."): value
            for name, value in state.items()
            if name.startswith("encoder.")
        }
    return {name: value for name, value in state.items() if not name.startswith(FCMAE_ONLY)}


def load(model: nn.Module, state: Mapping[str, Tensor], *, may_miss: tuple[str, ...] = ()) -> None:
    """Load `state` strictly; only names starting with one of `may_miss` may be absent.

    Raises:
        WeightsError: Naming every missing, unexpected and misshapen key, if any.
    """
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in state and not n.startswith(may_miss or ("\0",))]
    unexpected = [n for n in state if n not in wanted]
    misshapen = [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    problems = [
        *_listed("missing", missing),
        *_listed("unexpected", unexpected),
        *_listed("another shape", misshapen),
    ]
    if problems:
        raise WeightsError("these weights are of another model:\n" + "\n".join(problems))
    model.load_state_dict(dict(state), strict=False)


def _listed(what: str, names: list[str], most: int = 8) -> list[str]:
    if not names:
        return []
    more = [f"    … and {len(names) - most} more"] if len(names) > most else []
    return [f"  {what} ({len(names)}):", *(f"    {name}" for name in names[:most]), *more]


_TO_TIMM = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def convert(state: Mapping[str, Tensor], *, to: Literal["official", "timm"]) -> State:
    """Rename our (= the official dense) state for another library.

    timm's atto to nano hold the pointwise layers as 1x1 convolutions; `timm` loads either shape
    through `checkpoint_filter_fn`, so matrices stay matrices here.
    """
    if to == "official":
        return dict(state)
    if to != "timm":
        raise ValueError(f"cannot convert weights to {to!r}; choose official or timm")
    converted: State = {}
    for name, value in state.items():
        for pattern, replacement in _TO_TIMM:
            name = re.sub(pattern, replacement, name)
        converted[name] = value.flatten() if ".grn." in name else value
    return converted
