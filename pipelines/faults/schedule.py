"""The faults of a plan in the order in which they are due, with the random ones drawn."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.resilience.fault_injection import Fault
from pipelines.faults.kinds import KINDS, Kind
from pipelines.faults.plan import FaultPlan, Moment, PlannedFault


@dataclass(frozen=True)
class Fired:
    """What the worker noted when it fired a fault; `time` in epoch seconds.

    `host` is its machine or, where several nodes share one, its node.
    """

    rank: int
    step: int
    time: float
    host: str
    pid: int


@dataclass(frozen=True)
class Scheduled:
    """A fault with everything drawn.

    Attributes:
        number: From 1, in the order of the plan's steps.
        rank: The worker that fires it, or that has it fired.
        node: The node that it befalls, if not that of the worker.
        marker: A file that is there once it has fired.
    """

    number: int
    what: str
    when: Moment
    rank: int
    node: str | None
    marker: Path

    @property
    def kind(self) -> Kind:
        return KINDS[self.what]

    @property
    def line(self) -> str:
        """Of the variable that has workers fire it."""
        moment = self.when
        return Fault(self.kind.injected, self.rank, moment.step, self.marker, moment.phase).line

    @property
    def place(self) -> str:
        return self.node or (
            "" if self.what in ("add node", "kill driver") else f"rank {self.rank}"
        )

    def fired(self) -> Fired | None:
        """What the worker noted; None if it has not fired, or is just writing."""
        try:
            noted: dict[str, Any] = json.loads(self.marker.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return Fired(*(noted[name] for name in ("rank", "step", "time", "host", "pid")))


def schedule(plan: FaultPlan, workers: int, folder: Path) -> list[Scheduled]:
    """All faults of a plan for a run of so many workers, markers in `folder`.

    A function of the plan alone: the same seed draws the same faults.
    """
    draw = random.Random(plan.seed)
    faults = list(plan.faults)
    if plan.random is not None:
        for number in range(plan.random.count):
            what = draw.choice(plan.random.kinds)
            phase = "compare" if KINDS[what].injected == "flip" else "step"
            moment = Moment(phase, plan.random.every_steps * (number + 1))
            faults.append(PlannedFault.model_validate({"when": str(moment), "what": what}))
    ranks = [draw.randrange(workers) for _ in faults]
    found = [
        (fault, drawn if fault.where.rank is None else fault.where.rank)
        for fault, drawn in zip(faults, ranks, strict=True)
    ]
    found.sort(key=lambda pair: pair[0].when.step)
    return [
        Scheduled(
            number,
            fault.what,
            fault.when,
            0 if fault.where.node else rank,
            fault.where.node,
            folder / f"{number:02}-{fault.what.replace(' ', '-')}",
        )
        for number, (fault, rank) in enumerate(found, 1)
    ]
