"""Incidents: the faults of a run, and how long each phase of the recovery took.

An incident is written as a JSON line when it happens, and again when training continues, with the
same `id` and `time`; readers use the later line.
"""

import json
from collections.abc import Iterable, Mapping
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
"""The phases of a recovery, in order; their seconds add up to its whole time."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One fault and its recovery.

    Attributes:
        id: The stage's name and a number.
        time: When it happened (epoch seconds).
        stage: The stage of the pipeline.
        generation: That of the group that failed.
        cause: "error", "spike", "divergence", "killed", "memory", "hang", "node" or "preemption".
        rank: The rank of the worker that caused it.
        node: Ray's id of that worker's node; `host` is its address.
        phase: What that worker was doing.
        step: Optimizer steps that were done.
        error: What happened, in a line.
        workers: The number of workers in the group, and in the next one.
        lost_steps: Steps that were done and had to be done again.
        seconds: By phase of the recovery, see `PHASES`.
        stacks: The workers' thread stacks after a hang, by rank.
        recovered: Whether every worker of the next group has done a step.
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
    """Append an incident; while the storage fails or hangs, it is kept and written later."""
    _journal(run_dir / FILE).append(json.dumps(asdict(incident)))


def flush(run_dir: Path) -> None:
    """Wait until all incidents are written; at most a minute, while the storage fails."""
    _journal(run_dir / FILE).flush()


def read(run_dir: Path) -> list[Incident]:
    """All incidents of a run, in order, without a line that a full disk has cut off."""
    path = run_dir / FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    incidents = []
    for line in whole.splitlines():
        fields = json.loads(line)
        stacks = {int(rank): text for rank, text in fields.pop("stacks").items()}
        workers = tuple(fields.pop("workers"))
        incidents.append(Incident(**fields, workers=workers, stacks=stacks))
    return latest(incidents)


def latest(incidents: Iterable[Incident]) -> list[Incident]:
    """The last record of every incident, in the order of the first ones."""
    # Ids repeat: every driver counts groups from 1.
    return list({(incident.id, incident.time): incident for incident in incidents}.values())
