"""Where a command's time went, for the report: by stage, and by phase of those that train."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.runtime.events import Event, Interval, curve
from pipelines.runtime.goodput import Account

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
    """Where a training stage's wall time went, over all its worker groups and drivers.

    Args:
        stage: Its name.
        seconds: By part (`pipelines.runtime.group_time.PARTS`), without the shortest.
        total: Of all parts.
        goodput: Productive share of it.
        groups: How many worker groups there were.
        images: How many it got through, in so many `steps`; `rate` is per second of all its time.
        interval: What `checkpoint_every: auto` chose last, in words.
    """

    stage: str
    seconds: dict[str, float]
    total: float
    goodput: float
    groups: int
    images: int
    steps: int
    rate: float
    interval: str = ""


def training_time(stage: str, account: Account, events: Sequence[Event]) -> TrainingTime:
    """Where the time of a training stage went, and how many images it got through."""
    points = curve(events)
    images = points[-1].values["images"] if points else 0
    chosen = [event.in_words() for event in events if isinstance(event, Interval)]
    return TrainingTime(
        stage=stage,
        seconds={part: spent for part, spent in account.seconds.items() if spent >= NOTICEABLE},
        total=account.wall,
        goodput=account.goodput,
        groups=len(account.groups),
        images=int(images),
        steps=points[-1].step if points else 0,
        rate=images / account.wall if account.wall else 0.0,
        interval=chosen[-1] if chosen else "",
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
