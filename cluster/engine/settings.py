"""What the training engine is told."""

from dataclasses import dataclass, field

from cluster.engine.zero_config import Precision, ZeroSettings


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sharding, precision (bf16 keeps fp32 masters), clipping, averaging.

    `ema_decay` None keeps no moving average. After `max_skipped_steps` steps in a row whose loss
    or gradient is not finite training stops, at the latest in the step after. `cuda_graph` is for
    modules that are `cluster.engine.cuda_graph.Graphable`, on GPUs, in stages 0 to 2.
    """

    zero: ZeroSettings = field(default_factory=ZeroSettings)
    precision: Precision = "fp32"
    grad_clip: float = 0.0
    ema_decay: float | None = None
    max_skipped_steps: int = 10
    cuda_graph: bool = False
