"""Where the time of one worker group went; `pipelines.runtime.goodput` adds up those of a stage.

The sources are the event log of rank 0, the drivers' own notes and the incidents. The stopwatch of
rank 0, whose times are in the event log, tells what a group's time was spent on.
"""

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.resilience.incidents import Incident
from pipelines.runtime.drivers import Span
from pipelines.runtime.events import End, Event, Point, Start, Timed

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


@dataclass
class Group:
    """The events of one worker group."""

    start: Start
    timed: list[Timed]
    """Events that carry rank 0's stopwatch; the start is the first."""

    @classmethod
    def of(cls, events: Sequence[Event]) -> "Group":
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
        following: "Group | None",
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
        seconds = Counter(gap(began, ready, spans, SETUP if first else RESTART))
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
            seconds=in_order(seconds),
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


def gap(since: float, until: float, spans: Sequence[Span], part: str) -> dict[str, float]:
    """Seconds without a group: they count as `part` while a driver was running, else as idle."""
    there = math.fsum(max(0.0, min(until, span.ended) - max(since, span.began)) for span in spans)
    return {part: there, IDLE: until - since - there}


def in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    return {part: seconds[part] for part in PARTS if seconds.get(part)}
