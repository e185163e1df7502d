"""Recoveries as they were measured, and their table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PHASES = (
    "detection",
    "teardown",
    "process",
    "imports",
    "process group",
    "engine",
    "weights",
    "first batch",
    "first step",
)
"""Phases of a recovery, in the order of the table. "process" is the placement of workers and the
start of their processes. Plain Ray Train joins the process group before our imports, in a phase
that includes those of PyTorch."""
COLUMNS = ("fault", "system", *PHASES, "all (s)", "from detection (s)", "steps lost", "turns")


@dataclass(frozen=True)
class Recovery:
    """One fault, and what came of it; `total` is None when training had not gone on in time.

    Attributes:
        total: Seconds from the fault until every worker has done a new step. A worker that has
            notice of its preemption goes on for a while; then they count from its last step.
        lost_steps: Steps that were done and had to be done again.
        seconds: Of the phases, which add up to the total. Empty where they are not known.
    """

    total: float | None
    lost_steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def after_detection(self) -> float | None:
        if self.total is None or "detection" not in self.seconds:
            return None
        return self.total - self.seconds["detection"]


@dataclass(frozen=True)
class Row:
    """The turns of a fault with a system; each was given at most `cutoff` seconds."""

    fault: str
    system: str
    turns: Sequence[Recovery]
    cutoff: float


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: of phases the medians, of whole recoveries median and range."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    over = [turn for turn in row.turns if turn.total is not None]
    all_ = _spread([turn.total for turn in row.turns if turn.total is not None])
    later = _spread([t.after_detection for t in over if t.after_detection is not None])
    lost = _spread([turn.lost_steps for turn in over], digits=0)
    if len(over) < len(row.turns):
        missing = f"{len(row.turns) - len(over)} not within {row.cutoff:.0f} s"
        all_ = f"{all_}, {missing}" if over else missing
    phases = (_median([t.seconds[name] for t in over if name in t.seconds]) for name in PHASES)
    return (row.fault, row.system, *phases, all_, later, lost, str(len(row.turns)))


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f}" if values else ""


def _spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
