"""Goodput: the share of a run's training time that was productive, and where the rest went.

The time of a training stage runs from the start of its first driver until the stage is done, or
until now, including the time between two drivers. Every second belongs to exactly one part:

    driver begins     group is ready                    fault         next is ready       stage ends
          |-- set-up -------|-- step, data, checkpoint, ... --|-- restart ----|-- step, ... --|
                                        |------- lost --------|
                                 the step that the next group starts from

The sources are the event log of rank 0, the drivers' own notes and the incidents. The stopwatch of
rank 0, whose times are in the event log, tells what a group's time was spent on.
"""

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.runtime.drivers import Span, read_spans
from pipelines.runtime.events import End, Event, Point, Start, Timed, groups, read_events

PRODUCTIVE, LOST, IDLE, SETUP, RESTART, OTHER = (
    "step",
    "lost",
    "idle",
    "set-up",
    "restart",
    "other",
)
PARTS: Mapping[str, str] = {
    PRODUCTIVE: "productive steps",
    SETUP: "set-up",
    "data": "waiting for data",
    "evaluate": "evaluation",
    "checkpoint": "checkpoint block",
    LOST: "lost steps",
    RESTART: "restart",
    IDLE: "idle, no driver",
    OTHER: "other",
}
"""In the order of display. "Other" is logging, exporting weights, and the loop's own overhead."""
BETWEEN = ("evaluate", "checkpoint")
"""Phases between one step and the next."""


@dataclass(frozen=True, kw_only=True)
class GroupTime:
    """Where the time of one worker group went, including its set-up or restart.

    Attributes:
        began: When the previous group ended or the driver began (epoch seconds).
        ended: When the group finished or failed (epoch seconds).
        cause: The cause of the failure; "" if there was none.
        first_step: The step that the group started from.
        last_step: The last step that is known to be done.
        lost_steps: How many of its steps the next group repeated.
        seconds: Seconds by part; they add up to `ended - began`.
    """

    workers: int
    began: float
    ended: float
    cause: str
    first_step: int
    last_step: int
    lost_steps: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where the time of one or more stages went; the `seconds` of all parts add up to `wall`."""

    stage: str
    wall: float
    seconds: Mapping[str, float]
    groups: Sequence[GroupTime] = ()

    @property
    def goodput(self) -> float:
        """The productive share of the time, from 0 to 1."""
        return self.seconds.get(PRODUCTIVE, 0.0) / self.wall if self.wall > 0 else 0.0


def account_of(
    stage: str,
    events: Sequence[Event],
    spans: Sequence[Span],
    faults: Sequence[Incident] = (),
) -> Account:
    """Where the time of one stage went.

    Args:
        stage: The name of the stage.
        events: The events in its folder.
        spans: When drivers were running it; if empty, from the first start to the last event.
        faults: The incidents of the run; those of other stages are ignored.
    """
    faults = [fault for fault in faults if fault.stage == stage]
    runs = [_Group.of(each) for each in groups(events)]
    if not spans and runs:
        spans = [Span(runs[0].start.time, events[-1].time)]
    if not spans:
        return Account(stage=stage, wall=0.0, seconds={})
    began = known = spans[0].began
    finished = max(spans[-1].ended, *(run.last.time for run in runs), began)
    times: list[GroupTime] = []
    for run, following in itertools.zip_longest(runs, runs[1:]):
        times.append(run.time_from(known, spans, faults, following, first=not times))
        known = times[-1].ended
    after = OTHER if runs and runs[-1].is_done else RESTART if runs else SETUP
    seconds = Counter(_gap(known, finished, spans, after))
    for time in times:
        seconds.update(time.seconds)
    return Account(stage=stage, wall=finished - began, seconds=_in_order(seconds), groups=times)


def total(accounts: Iterable[Account]) -> Account:
    """The sum of several stages."""
    each = list(accounts)
    seconds: Counter[str] = Counter()
    for account in each:
        seconds.update(account.seconds)
    return Account(
        stage="all", wall=sum(account.wall for account in each), seconds=_in_order(seconds)
    )


def accounts_of(run_dir: Path, but: Path | None = None) -> list[Account]:
    """The accounts of a run's training stages, by start time, without the stage in `but`."""
    faults = incidents.read(run_dir)
    found = []
    for directory in run_dir.glob("stages/*/*"):
        spans = read_spans(directory)
        if but is not None and directory.samefile(but):
            continue
        events = read_events(directory)
        if not any(isinstance(event, Start) for event in events):
            continue
        stage = directory.parent.name
        began = spans[0].began if spans else events[0].time
        found.append((began, account_of(stage, events, spans, faults)))
    return [account for _, account in sorted(found, key=lambda pair: pair[0])]


@dataclass
class _Group:
    """The events of one worker group."""

    start: Start
    timed: list[Timed]
    """Events that carry rank 0's stopwatch; the start is the first."""

    @classmethod
    def of(cls, events: Sequence[Event]) -> "_Group":
        start = events[0]
        assert isinstance(start, Start)
        timed = [each for each in events[1:] if isinstance(each, Timed) and each.seconds]
        return cls(start, [start, *timed])

    @property
    def last(self) -> Timed:
        return self.timed[-1]

    @property
    def is_done(self) -> bool:
        return isinstance(self.last, End)

    def time_from(
        self,
        began: float,
        spans: Sequence[Span],
        faults: Sequence[Incident],
        following: "_Group | None",
        *,
        first: bool,
    ) -> GroupTime:
        """Its time, from the end of the previous group until its own end.

        Lost is all time after the step that the `following` group starts from.
        """
        ready = self.start.time
        until = following.start.time if following else math.inf
        fault = next((each for each in faults if ready < each.time < until), None)
        if self.is_done:
            fault, ended = None, self.last.time
        elif fault is not None:
            ended = max(fault.time, self.last.time)
        else:  # The driver was killed, or the group is still running.
            span = next((each for each in reversed(spans) if each.began <= ready), spans[0])
            ended = max(min(span.ended, until), self.last.time)
        last_step = max(self._notes[-1].step, -1 if fault is None else fault.step)
        kept_step = last_step if following is None else min(last_step, following.start.step)
        kept, spent = ended, self._spent_until(ended)
        if kept_step < last_step or (following is not None and not self.is_done):
            kept, spent = self._kept(kept_step, last_step, ended)
        seconds = Counter(_gap(began, ready, spans, SETUP if first else RESTART))
        seconds.update(self._parts(kept, spent))
        seconds.update({LOST: ended - kept})
        return GroupTime(
            workers=self.start.workers,
            began=began,
            ended=ended,
            cause="" if fault is None else fault.cause,
            first_step=self.start.step,
            last_step=last_step,
            lost_steps=last_step - kept_step,
            seconds=_in_order(seconds),
        )

    @property
    def _notes(self) -> list[Timed]:
        """The timed events that were written at the end of a step."""
        return [each for each in self.timed if isinstance(each, Start | Point | End)]

    def _kept(self, step: int, last_step: int, ended: float) -> tuple[float, Mapping[str, float]]:
        """When `step` was done, evaluated and saved, and rank 0's seconds by phase until then."""
        for before, after in itertools.pairwise(self._notes):
            if before.step <= step < after.step:
                share = (step - before.step) / (after.step - before.step)
                spent = {
                    phase: seconds - before.seconds.get(phase, 0.0)
                    for phase, seconds in after.seconds.items()
                }
                block = math.fsum(spent.get(phase, 0.0) for phase in BETWEEN)
                when = before.time + block + share * (after.time - before.time - block)
                shares = {phase: 1.0 if phase in BETWEEN else share for phase in spent}
                return when, {
                    phase: before.seconds.get(phase, 0.0) + shares[phase] * seconds
                    for phase, seconds in spent.items()
                }
        last = self._notes[-1]
        share = (step - last.step) / max(1, last_step - last.step)
        when = last.time + share * (ended - last.time)
        return when, self._spent_until(when)

    def _spent_until(self, when: float) -> Mapping[str, float]:
        """Rank 0's seconds by phase; the time after its last event counts as steps."""
        index = bisect_right(self.timed, when, key=lambda each: each.time)
        noted = self.timed[max(0, index - 1)]
        spent = Counter(noted.seconds)
        spent.update({PRODUCTIVE: max(0.0, when - noted.time)})
        return spent

    def _parts(self, when: float, spent: Mapping[str, float]) -> dict[str, float]:
        """Seconds by part since the group was ready; they add up to that time."""
        before = self.start.seconds
        parts = {
            phase: spent.get(phase, 0.0) - before.get(phase, 0.0)
            for phase in (PRODUCTIVE, "data", *BETWEEN)
        }
        parts[OTHER] = when - self.start.time - math.fsum(parts.values())
        return parts


def _gap(since: float, until: float, spans: Sequence[Span], part: str) -> dict[str, float]:
    """Seconds without a group: they count as `part` while a driver was running, else as idle."""
    there = math.fsum(max(0.0, min(until, span.ended) - max(since, span.began)) for span in spans)
    return {part: there, IDLE: until - since - there}


def _in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    return {part: seconds[part] for part in PARTS if seconds.get(part)}
