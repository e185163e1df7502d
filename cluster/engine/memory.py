"""How much memory the model states of a worker take (ZeRO, arXiv 1910.02054, figure 1)."""

from typing import NamedTuple

from cluster.engine.zero_config import Precision

FP32 = 4


class ModelStates(NamedTuple):
    """Bytes per worker; `optimizer` is AdamW's moments and the fp32 masters, where there are any.

    Activations, buckets and what a collective needs for a moment come on top.
    """

    parameters: int
    gradients: int
    optimizer: int
    ema: int

    @property
    def total(self) -> int:
        return sum(self)


def model_states(
    parameters: int,
    *,
    stage: int,
    world_size: int,
    precision: Precision = "fp32",
    ema: bool = False,
) -> ModelStates:
    """Of so many parameters at a ZeRO stage, shared among the workers.

    In fp32, stages 1 and 2 keep masters beside the weights; stages 0 and 3 train the weights
    themselves.
    """
    low = 2 if precision == "bf16" else FP32
    masters = FP32 if precision == "bf16" or stage in (1, 2) else 0

    def shared(size: int, from_stage: int) -> int:
        return round(parameters * size / (world_size if stage >= from_stage else 1))

    return ModelStates(
        parameters=shared(low, 3),
        gradients=shared(low, 2),
        optimizer=shared(2 * FP32 + masters, 1),
        ema=shared(FP32, 1) if ema else 0,
    )
