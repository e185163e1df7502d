"""Loads a state into a model: all of it or nothing, with an explanation of what does not fit."""

from collections.abc import Mapping
from itertools import islice

from torch import Tensor, nn

from convnextv2.weights.geometry import Geometry, geometry_of
from convnextv2.weights.state import WeightsError

COMPARED = {
    "depths": "blocks per stage",
    "dims": "channels per stage",
    "in_channels": "image channels",
    "stem_stride": "stem stride",
    "num_classes": "classes",
    "decoder": "decoder",
    "decoder_dim": "decoder channels",
    "decoder_depth": "decoder depth",
}
MOST = 8
"""Most names listed of each kind when the models have different sizes, which explains them."""


def load(model: nn.Module, state: Mapping[str, Tensor], *, may_miss: tuple[str, ...] = ()) -> None:
    """Load `state` strictly; only names starting with one of `may_miss` may be absent.

    Raises:
        WeightsError: When something does not fit; says how the two models differ and names every
            missing, unexpected and misshapen key. The model is not changed.
    """
    wanted = model.state_dict()
    missing = [n for n in wanted if n not in state and not n.startswith(may_miss or ("\0",))]
    unexpected = [n for n in state if n not in wanted]
    misshapen = [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(wanted[n].shape)}"
        for n in wanted
        if n in state and state[n].shape != wanted[n].shape
    ]
    if missing or unexpected or misshapen:
        given, ours = _geometry(state), _geometry(wanted)
        most = MOST if given and ours and given.size != ours.size else None
        lines = [
            "these weights are of another model:",
            *_differences(given, ours),
            *_listed("missing", missing, most),
            *_listed("unexpected", unexpected, most),
            *_listed("another shape", misshapen, most),
        ]
        raise WeightsError("\n".join(lines))
    model.load_state_dict(dict(state), strict=False)


def _geometry(state: Mapping[str, Tensor]) -> Geometry | None:
    """None for what is no ConvNeXt V2, of which only the names can be compared."""
    try:
        return geometry_of(state)
    except WeightsError:
        return None


def _differences(given: Geometry | None, model: Geometry | None) -> list[str]:
    if given is None or model is None:
        return []
    if given.size != model.size:
        return [f"  size: they are {given.size}, the model is {model.size}"]
    return [
        f"  {label}: they have {theirs or 'none'}, the model {ours or 'none'}"
        for field, label in COMPARED.items()
        if (theirs := getattr(given, field)) != (ours := getattr(model, field))
    ]


def _listed(what: str, names: list[str], most: int | None) -> list[str]:
    if not names:
        return []
    listed = [f"    {name}" for name in islice(names, most)]
    more = len(names) - len(listed)
    return [f"  {what} ({len(names)}):", *listed, *([f"    … and {more} more"] if more else [])]
