"""Which checkpoints stay."""

import math
from dataclasses import dataclass
from pathlib import Path

from cluster.checkpoint.store import Checkpoint, CheckpointError, good_by_size, remove, verify


@dataclass(frozen=True, kw_only=True)
class KeepPolicy:
    """The newest `last`, those at multiples of `every` steps, and the best one by a metric.

    Attributes:
        last: At least 1.
        every: Steps; None keeps none for good.
        best: Name among the metrics noted with a checkpoint; None looks at none.
        smaller_is_better: Of that metric.
        reach: One that is at least so many steps older than the newest stays, too.

    Raises:
        ValueError: When `last` or `every` is below 1.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    smaller_is_better: bool = False
    reach: int = 0

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
        kept |= {checkpoint.path for checkpoint in self._far_back(checkpoints)}
        scored = [(self._score(each), each.step, each.path) for each in checkpoints]
        score, _, best = max(scored, default=(-math.inf, 0, None))
        return kept | {best} if best is not None and score > -math.inf else kept

    def _far_back(self, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
        """The one to go back to, and the one that will take its place when it is old enough."""
        old = sum(each.step <= checkpoints[-1].step - self.reach for each in checkpoints)
        return checkpoints[max(0, old - 1) : old + 1]

    def _score(self, checkpoint: Checkpoint) -> float:
        """Higher is better; the worst without the metric, or when it is no number."""
        value = (checkpoint.notes.get("metrics") or {}).get(self.best)
        if not isinstance(value, int | float) or math.isnan(value):
            return -math.inf
        return -value if self.smaller_is_better else value


def prune(root: Path, policy: KeepPolicy) -> None:
    """Remove what the policy does not keep; called on rank 0 after a good save.

    Only checkpoints that are good stand for others and are removed: of those that are not (cut
    short, say), none is counted and none is touched. Good by size is enough, but not for the
    newest: before anything is removed, every byte of it is read.
    """
    good = good_by_size(root)
    while doomed := [each for each in good if each.path not in policy.chosen(good)]:
        if _is_good(good[-1].path):
            for checkpoint in doomed:
                remove(checkpoint.path)
            return
        good.pop()


def _is_good(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
