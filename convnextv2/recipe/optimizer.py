"""Parameter groups: what is decayed, and how fast each layer learns."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from convnextv2.recipe.layer_decay import Grouping, layer_scale

DecayRule = Literal["all-but-1d", "all-but-1d-and-grn"]


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """How parameters are sorted into groups.

    `exempt` "all-but-1d" decays everything except vectors and biases: the paper's pretraining,
    in which GRN and the mask token are decayed. "all-but-1d-and-grn" spares GRN's gamma and beta
    as well: its fine-tuning. `layer_decay` multiplies the rate of a layer by decay^(distance from
    the head), where `grouping` says what a layer is (see `layer_decay`).
    """

    weight_decay: float
    exempt: DecayRule = "all-but-1d"
    layer_decay: float = 1.0
    grouping: Grouping = "single"


def parameter_groups(
    model: nn.Module, rule: GroupRule, depths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups for an optimizer, one for each pair of settings.

    Every trainable parameter is in exactly one group, in the order of the model. ZeRO updates the
    groups one after another, so that few groups are faster.

    Raises:
        ValueError: When nothing is trainable, or the layers cannot be grouped as asked.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if is_exempt(name, parameter, rule.exempt) else rule.weight_decay
        scale = layer_scale(name, depths, rule.layer_decay, rule.grouping)
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("no parameter of the model is trainable (requires_grad)")
    return list(groups.values())


def is_exempt(name: str, parameter: nn.Parameter, rule: DecayRule) -> bool:
    """Whether a parameter gets no weight decay; of a ZeRO-3 shard `ds_shape` is the full shape."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if len(shape) == 1 or name.endswith(".bias"):
        return True
    return rule == "all-but-1d-and-grn" and name.endswith((".gamma", ".beta"))
