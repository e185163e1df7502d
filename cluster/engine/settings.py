"""The settings of the training engine."""

from dataclasses import dataclass, field

from cluster.engine.zero_config import Precision, ZeroSettings


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sharding, precision (bf16 keeps fp32 master weights), clipping, averaging.

    With `ema_decay` None there is no moving average. Training stops after `max_skipped_steps`
    consecutive steps with a non-finite loss or gradient, at most one step later. `cuda_graph` needs
    a `cluster.engine.cuda_graph.Graphable` module, GPUs, and ZeRO stage 0, 1 or 2.
    """

    zero: ZeroSettings = field(default_factory=ZeroSettings)
    precision: Precision = "fp32"
    grad_clip: float = 0.0
    ema_decay: float | None = None
    max_skipped_steps: int = 10
    cuda_graph: bool = False
