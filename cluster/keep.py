"""Which checkpoints stay."""

from dataclasses import dataclass
from pathlib import Path

from cluster.checkpoint import Checkpoint, CheckpointError, remove, steps, verify


@dataclass(frozen=True, kw_only=True)
class KeepPolicy:
    """The newest `last`, those at multiples of `every` steps, and the best one by a metric.

    Attributes:
        last: At least 1.
        every: Steps; None keeps none for good.
        best: Name among the metrics noted with a checkpoint; None looks at none.
        smaller_is_better: Of that metric.

    Raises:
        ValueError: When `last` or `every` is below 1.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    smaller_is_better: bool = False

    def __post_init__(self) -> None:
        if self.last < 1 or (self.every is not None and self.every < 1):
            raise ValueError(
                f"keep last {self.last}, every {self.every}: at least 1 checkpoint must stay"
            )

    def chosen(self, checkpoints: list[Checkpoint]) -> set[Path]:
        """Those that stay, of `checkpoints` from the oldest to the newest."""
        kept = {checkpoint.path for checkpoint in checkpoints[-self.last :]}
        if self.every is not None:
            kept |= {each.path for each in checkpoints if each.step % self.every == 0}
        if self.best is not None:
            sign = -1 if self.smaller_is_better else 1
            scored = [
                (sign * each.notes["metrics"][self.best], each.step, each.path)
                for each in checkpoints
                if self.best in each.notes.get("metrics", {})
            ]
            kept |= {max(scored)[2]} if scored else set()
        return kept


def prune(root: Path, policy: KeepPolicy) -> None:
    """Remove what the policy does not keep; called on rank 0 after a good save.

    Only checkpoints that are good stand for others and are removed: of those that are not (cut
    short, say), none is counted and none is touched.
    """
    good = []
    for path in steps(root):
        try:
            good.append(verify(path, contents=False))
        except CheckpointError:
            continue  # latest_good reports it when it is looked for; it is not ours to remove.
    kept = policy.chosen(good)
    for checkpoint in good:
        if checkpoint.path not in kept:
            remove(checkpoint.path)
