"""Where a command's time went, for the report: by stage, and by phase of those that train."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.resilience.goodput import OTHER
from pipelines.runtime.events import (
    HAND_OVER,
    LOST,
    STARTING,
    Event,
    curve,
    seconds_by_phase,
    split,
    wall_by_phase,
)

PHASES = {
    STARTING: "starting the workers",
    "start-up": "building and loading",
    "step": "steps",
    "data": "waiting for data",
    "log": "logging",
    "evaluate": "evaluating",
    "checkpoint": "checkpoints",
    OTHER: "other",
    LOST: "lost to restarts",
    HAND_OVER: "handing over",
}
"""Phases of a stage that trains, in the order they are drawn."""
STATUSES = {"run": "run now", "resumed": "resumed", "done": "done before"}
NOTICEABLE = 0.05
"""Seconds; a shorter time would be shown as 0.0 s."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """Wall seconds of one stage until `finished` (epoch seconds); status as in
    `pipelines.graph.StageResult`.
    """

    name: str
    seconds: float
    status: str
    finished: float


@dataclass(frozen=True, kw_only=True)
class TrainingTime:
    """Where a training stage's wall time went.

    Args:
        stage: Its name.
        seconds: By phase, in the order of PHASES, without those too short to be shown.
        total: Of all phases.
        earlier: Seconds that worker groups of commands that did not finish it had trained before.
        images: How many it got through, in so many `steps`; `rate` is per second of all its time.
    """

    stage: str
    seconds: dict[str, float]
    total: float
    earlier: float
    images: int
    steps: int
    rate: float


def training_time(stage: StageRow, events: Sequence[Event]) -> TrainingTime:
    """Where the time of a training stage went, and how many images it got through.

    The phases add up to the stage's wall time, and `earlier` is what worker groups of commands
    that did not finish it had trained before.
    """
    before, now = split(events, stage.finished - stage.seconds)
    spent = wall_by_phase(now, stage.finished - stage.seconds, stage.finished)
    earlier = math.fsum(seconds_by_phase(before).values())
    points = curve(events)
    images = points[-1].values["images"] if points else 0
    total = stage.seconds + earlier
    return TrainingTime(
        stage=stage.name,
        seconds={phase: spent[phase] for phase in PHASES if spent.get(phase, 0) >= NOTICEABLE},
        total=math.fsum(spent.values()),
        earlier=earlier if earlier >= NOTICEABLE else 0.0,
        images=int(images),
        steps=points[-1].step if points else 0,
        rate=images / total if total else 0.0,
    )


def duration(seconds: float) -> str:
    """A duration in words, in its two largest units."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
