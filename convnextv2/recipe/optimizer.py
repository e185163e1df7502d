"""Parameter groups: weight-decay exemptions and layer-wise learning rate decay."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

DecayRule = Literal["all-but-1d", "all-but-1d-and-grn"]


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """How parameters are sorted into groups.

    `exempt` "all-but-1d" decays everything except vectors and biases: the paper's pretraining,
    in which GRN and the mask token are decayed. "all-but-1d-and-grn" spares GRN's gamma and beta
    as well: its fine-tuning. `layer_decay` multiplies the rate of a layer by decay^(distance from
    the head), one layer per block ("single").
    """

    weight_decay: float
    exempt: DecayRule = "all-but-1d"
    layer_decay: float = 1.0


def parameter_groups(model: nn.Module, rule: GroupRule, depths: tuple[int, ...]) -> list[Any]:
    """Groups for a torch optimizer, equal settings merged; `lr_scale` is for the schedule.

    Every trainable parameter lands in exactly one group; order follows the model's.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if is_exempt(name, parameter, rule.exempt) else rule.weight_decay
        scale = rule.layer_decay ** (sum(depths) + 1 - layer_of(name, depths))
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    return list(groups.values())


def is_exempt(name: str, parameter: nn.Parameter, rule: DecayRule) -> bool:
    """Whether a parameter gets no weight decay. Works on ZeRO-3 shards: `ds_shape` is the whole."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    if len(shape) == 1 or name.endswith(".bias"):
        return True
    return rule == "all-but-1d-and-grn" and name.endswith((".gamma", ".beta"))


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """Layer number 1 .. sum(depths), and sum(depths) + 1 for everything behind the last block.

    The stem shares layer 1 with the first block; a downsampling layer belongs to the first block
    of its stage.
    """
    parts = list(_after_encoder(name))
    if parts[:1] == ["downsample_layers"]:
        return sum(depths[: int(parts[1])]) + 1
    if parts[:1] == ["stages"]:
        return sum(depths[: int(parts[1])]) + int(parts[2]) + 1
    return sum(depths) + 1


def _after_encoder(name: str) -> Iterator[str]:
    """Path of a parameter from the encoder's own name on; wrappers put prefixes before it."""
    parts = name.split(".")
    starts = [i for i, part in enumerate(parts) if part in ("downsample_layers", "stages")]
    return iter(parts[starts[0] :] if starts else ())
