"""What the controller and the workers of plain Ray Train write down, and the recovery in it."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipelines.bench.faults.recovery import PHASES, Recovery
from pipelines.bench.faults.training import WORKERS

FILE = "marks.jsonl"
OF_CONTROLLER = ("detection", "teardown")
STEP = "first step"


@dataclass(frozen=True)
class Mark:
    """The phase `name` has ended, in the worker `rank` or in the controller (-1).

    Every optimizer step ends a phase "first step"; `step` is how many are done.
    """

    name: str
    rank: int = -1
    step: int = 0
    host: str = ""
    time: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)


def append(folder: Path, mark: Mark) -> None:
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(asdict(mark)) + "\n")


def read(folder: Path) -> list[Mark]:
    """All marks so far, by their time."""
    if not (folder / FILE).exists():
        return []
    whole, _, _ = (folder / FILE).read_text().rpartition("\n")
    marks = (Mark(**json.loads(line)) for line in whole.splitlines())
    return sorted(marks, key=lambda mark: mark.time)


def recovery_of(marks: Sequence[Mark], since: float) -> Recovery | None:
    """The recovery from the only fault since then; None while it is not over."""
    # The last group counts: one before it may not have got to a step.
    group = {mark.rank: mark.pid for mark in marks if mark.name == "weights" and mark.time > since}
    own = [mark for mark in marks if mark.pid in group.values()]
    if {mark.rank for mark in own if mark.name == STEP} != set(range(WORKERS)):
        return None
    old_steps = [mark for mark in marks if mark.name == STEP and mark not in own]
    began = next(mark.step for mark in own if mark.name == "weights")
    lost = max(mark.step for mark in old_steps) - began
    reached: dict[str, float] = {}
    for name in PHASES:
        if name in OF_CONTROLLER:
            times = [mark.time for mark in marks if mark.name == name and mark.time > since]
        else:
            first = {mark.pid: mark.time for mark in reversed(own) if mark.name == name}
            times = [max(first.values())]
        if times:
            reached[name] = times[0]
    if "detection" not in reached:  # It was preempted, and left when it was told to.
        return Recovery(reached[STEP] - max(since, old_steps[-1].time), lost)
    # By time: the process group is joined before some of the imports.
    seconds, before = {}, since
    for name, when in sorted(reached.items(), key=lambda item: item[1]):
        seconds[name], before = when - before, when
    return Recovery(before - since, lost, seconds)
