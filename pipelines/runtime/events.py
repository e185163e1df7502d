"""The event log: what a stage measured, as JSON lines in its folder, written by rank 0 only.

The progress bar, MLflow and the report are made from it. Lines are appended and never changed.
After a restart, a "start" line has the step that training continued from, and readers ignore
earlier lines of later steps. Lines of training carry the generation of their lease
(`cluster.resilience.lease`), as in "generation": 3. Workers of an older generation may still be
alive; readers ignore what they append once a newer one has started.

    {"kind": "start", "step": 400, "time": ..., "workers": 2, "total": 1248, "hosts": [...],
     "seconds": {...}}
    {"kind": "shared_gpu", "step": 400, "time": ..., "rank": 3, "host": ..., "users": ...,
     "gpus": 1}
    {"kind": "point", "step": 410, "time": ..., "seconds": {...}, "loss": 0.47, ...}
    {"kind": "validation", "step": 500, "time": ..., "val_top1": 0.71, "val_top1_ema": 0.72, ...}
    {"kind": "skipped", "step": 410, "time": ..., "skipped_steps": 1}
    {"kind": "checkpoint", "step": 500, "time": ..., "bytes": ..., "written_seconds": 0.2,
     "seconds": {...}}
    {"kind": "interval", "step": 500, "time": ..., "interval_steps": 640, "step_seconds": 1.2, ...}
    {"kind": "save_failed", "step": 500, "time": ..., "reason": ..., "tries": 7, "in_a_row": 1}
    {"kind": "rejected", "step": 0, "time": ..., "path": ..., "reason": ...}
    {"kind": "end", "step": 1248, "time": ..., "seconds": {...}}
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cluster.resilience.journal import Journal

if TYPE_CHECKING:
    from cluster.resilience.lease import Lease

EVENTS_FILE = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened at a step, at `time` (epoch seconds).

    `generation` is that of the lease, 0 where there is no lease.
    """

    kind: ClassVar[str]
    step: int
    time: float = field(default_factory=time.time)
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class Timed(Event):
    """An event with rank 0's `seconds` by phase since its worker group started, if it has them."""

    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Start(Timed):
    """A worker group starts from `step`, of `total` steps.

    `hosts` has the names of the workers' machines, by rank.
    """

    kind: ClassVar[str] = "start"
    workers: int
    total: int
    hosts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class SharedGPU(Event):
    """Other processes use GPUs of the group, `gpus` of them; `users` is a phrase on those of the
    first, that of worker `rank`.
    """

    kind: ClassVar[str] = "shared_gpu"
    rank: int
    host: str
    users: str
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """An event with metrics by name, which are fields of the line in the file."""

    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Point(Measured, Timed):
    """Progress of a stage: the current step and the latest metrics."""

    kind: ClassVar[str] = "point"


@dataclass(frozen=True, kw_only=True)
class Validation(Measured):
    """What was measured on the validation split during training."""

    kind: ClassVar[str] = "validation"


@dataclass(frozen=True, kw_only=True)
class Skipped(Event):
    """A step was skipped, the `skipped_steps`th of this training."""

    kind: ClassVar[str] = "skipped"
    skipped_steps: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Timed):
    """A checkpoint of `bytes` is on disk; writing it in the background took `written_seconds`."""

    kind: ClassVar[str] = "checkpoint"
    bytes: int
    written_seconds: float


@dataclass(frozen=True, kw_only=True)
class Interval(Measured):
    """The interval between checkpoints that `checkpoint_every: auto` has chosen, and its reasons:
    `interval_steps`, `block_seconds`, `step_seconds`, `hours_to_failure`, `failures`.
    """

    kind: ClassVar[str] = "interval"

    def in_words(self) -> str:
        steps, hours = self.values["interval_steps"], self.values["hours_to_failure"]
        seconds = steps * self.values["step_seconds"]
        block, failures = self.values["block_seconds"], self.values["failures"]
        return (
            f"from step {self.step} on, a checkpoint every {steps:,.0f} steps ({seconds:,.0f} s): "
            f"it blocks training for {block:.2g} s, and a failure is expected every {hours:,.1f} h "
            f"({failures:.0f} so far)"
        )


@dataclass(frozen=True, kw_only=True)
class SaveFailed(Event):
    """The checkpoint of this step was given up after `tries`; the `in_a_row`th one in a row."""

    kind: ClassVar[str] = "save_failed"
    reason: str
    tries: int
    in_a_row: int


@dataclass(frozen=True, kw_only=True)
class Rejected(Event):
    """A damaged checkpoint was passed over."""

    kind: ClassVar[str] = "rejected"
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class End(Timed):
    """Training has reached its last step."""

    kind: ClassVar[str] = "end"


KINDS: Mapping[str, type[Event]] = {
    each.kind: each
    for each in (
        *(Start, Point, Validation, Skipped, Checkpoint, Interval, SaveFailed, SharedGPU),
        *(Rejected, End),
    )
}


class EventLog:
    """Appends an attempt's events to the file in `directory`, if it is `active` (rank 0).

    Storage that is full, read-only, gone or stuck does not stop training: events are kept and
    written later. An attempt that no longer holds its `lease` writes none.
    """

    def __init__(self, directory: Path, *, active: bool, lease: "Lease | None" = None) -> None:
        self._generation = 0 if lease is None else lease.generation
        may_write = None if lease is None else lease.held
        self._journal = Journal(directory / EVENTS_FILE, may_write) if active else None

    def write(self, event: Event) -> None:
        if self._journal is not None:
            self._journal.append(line_of(replace(event, generation=self._generation)))

    def flush(self) -> None:
        """Wait until all events are written; at most a minute, while the storage fails."""
        if self._journal is not None:
            self._journal.flush()


class EventReader:
    """Reads the events appended since the last call."""

    def __init__(self, directory: Path, *, from_end: bool = False) -> None:
        self._path = directory / EVENTS_FILE
        self._offset = self._generation = 0
        if from_end:
            self.new_events()

    def new_events(self) -> list[Event]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, separator, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(separator)
        return list(self._of_newest(event_of(line) for line in whole.splitlines() if line))

    def _of_newest(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events without those that an older generation appended after a newer one's start."""
        for event in events:
            if isinstance(event, Start):
                self._generation = max(self._generation, event.generation)
            if event.generation >= self._generation:
                yield event


def line_of(event: Event) -> str:
    """An event as a line of JSON."""
    fields = {name: value for name, value in asdict(event).items() if value not in ({}, ())}
    values = fields.pop("values", {})
    if not event.generation:
        del fields["generation"]
    return json.dumps({"kind": event.kind, **fields, **values})


def event_of(line: bytes | str) -> Event:
    """The event of a line.

    Raises:
        ValueError: When the line is not JSON, or its kind is unknown.
    """
    fields = json.loads(line)
    kind = fields.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"an event of kind {kind!r}; there are {', '.join(KINDS)}")
    found = KINDS[kind]
    if issubclass(found, Measured):
        own = {each.name for each in dataclasses.fields(found)} & fields.keys()
        return found(**{name: fields.pop(name) for name in own}, values=fields)
    return found(**fields)


def read_events(directory: Path) -> list[Event]:
    """Every event of a stage so far."""
    return EventReader(directory).new_events()


def curve(events: Sequence[Event]) -> list[Point]:
    """The points without those of steps that a restart discarded."""
    return [event for event in measurements(events) if isinstance(event, Point)]


def measurements(events: Sequence[Event]) -> list[Measured]:
    """Points and validations without those of steps that a restart discarded."""
    found: list[Measured] = []
    for event in events:
        if isinstance(event, Start):
            found = [each for each in found if each.step <= event.step]
        elif isinstance(event, Measured):
            found.append(event)
    return found


def restarts(events: Sequence[Event]) -> list[Start]:
    """The starts after the first, one for each later worker group."""
    return [event for event in events if isinstance(event, Start)][1:]


def groups(events: Sequence[Event]) -> list[Sequence[Event]]:
    """The events of each worker group, beginning with its start."""
    starts = [index for index, event in enumerate(events) if isinstance(event, Start)]
    return [events[start:end] for start, end in itertools.pairwise([*starts, len(events)])]
