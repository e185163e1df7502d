"""Learning rate as a function of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up from 0 over `warmup_steps`, then half a cosine from `peak` to `floor`.

    Raises:
        ValueError: When the warm-up is longer than training.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"the warm-up of {self.warmup_steps} steps is longer than the {self.total_steps} "
                "of training"
            )

    def at(self, step: int) -> float:
        """Learning rate of the update that starts from `step` updates done."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * progress)) / 2


def scaled_lr(base_lr: float, global_batch_size: int) -> float:
    """Linear scaling rule of the paper: base_lr is per 256 images."""
    return base_lr * global_batch_size / 256
