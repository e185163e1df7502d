"""How much memory the model states of a worker take (ZeRO, arXiv 1910.02054, figure 1)."""

from cluster.engine.zero_config import Precision

FP32 = 4


def model_state_bytes(
    parameters: int,
    *,
    stage: int,
    world_size: int,
    precision: Precision = "fp32",
    ema: bool = False,
) -> int:
    """Bytes per worker of weights, gradients, fp32 masters, AdamW's moments and the EMA.

    Activations, buckets and what a collective needs for a moment come on top. In fp32, stages 1
    and 2 keep masters beside the weights; stages 0 and 3 train the weights themselves.
    """
    low = 2 if precision == "bf16" else FP32
    whole_weights, whole_gradients = stage < 3, stage < 2
    optimizer = 2 * FP32 + (FP32 if ema else 0)
    if precision == "bf16" or stage in (1, 2):
        optimizer += FP32
    whole = low * whole_weights + low * whole_gradients + optimizer * (stage == 0)
    shared = low * (not whole_weights) + low * (not whole_gradients) + optimizer * (stage > 0)
    return round(parameters * (whole + shared / world_size))
