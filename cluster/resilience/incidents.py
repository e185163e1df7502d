"""Incidents: what befell a run, what it cost, and where the seconds went until it went on.

One JSON line when it happens and one when training goes on, under the same `id` and `time`; the
later counts.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from cluster.resilience.journal import Journal

FILE = "incidents.jsonl"
PHASES = (
    "detection",
    "teardown",
    "placement",
    "imports",
    "process group",
    "engine",
    "weights",
    "first batch",
    "first step",
)
"""Of a recovery, in their order: seconds of each, which add up to the whole."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One fault and its recovery.

    Attributes:
        id: Of the run folder: the stage's name, and a number.
        time: When it happened (epoch seconds).
        stage: Of the pipeline.
        generation: Of the group that it befell.
        cause: "error", "divergence", "killed", "memory", "hang", "node" or "preemption".
        rank: Of the worker that is to blame.
        node: Ray's id of that worker's node; `host` is its address.
        phase: What the worker was doing.
        step: Optimizer steps that were done.
        error: What happened, in a line.
        workers: How many the group had, and how many the next one has.
        lost_steps: Steps that were done and had to be done again.
        seconds: By phase of the recovery, see `PHASES`.
        stacks: Where the workers' threads were, by rank, if they hung.
        recovered: Whether the next group has done a step.
    """

    id: str
    time: float
    stage: str
    generation: int
    cause: str
    rank: int
    node: str
    host: str
    phase: str
    step: int
    error: str
    workers: tuple[int, int]
    lost_steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stacks: Mapping[int, str] = field(default_factory=dict)
    recovered: bool = False

    @property
    def downtime(self) -> float:
        """Seconds from the fault until the first new step."""
        return sum(self.seconds.values())


@cache
def _journal(path: Path) -> Journal:
    return Journal(path)


def append(run_dir: Path, incident: Incident) -> None:
    """Note an incident; with the next one, if the disk is full."""
    _journal(run_dir / FILE).append(json.dumps(asdict(incident)))


def read(run_dir: Path) -> list[Incident]:
    """All incidents of a run, in their order; a line that a full disk cut off is left out."""
    path = run_dir / FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    found: dict[tuple[str, float], Incident] = {}  # Every driver counts its groups from 1.
    for line in whole.splitlines():
        fields = json.loads(line)
        stacks = {int(rank): text for rank, text in fields.pop("stacks").items()}
        workers = tuple(fields.pop("workers"))
        incident = Incident(**fields, workers=workers, stacks=stacks)
        found[incident.id, incident.time] = incident
    return list(found.values())
