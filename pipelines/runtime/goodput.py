"""Goodput: the share of a run's training time that was productive, and where the rest went.

The time of a training stage runs from the start of its first driver until the stage is done, or
until now, including the time between two drivers. Every second belongs to exactly one part:

    driver begins     group is ready                    fault         next is ready       stage ends
          |-- set-up -------|-- step, data, checkpoint, ... --|-- restart ----|-- step, ... --|
                                        |------- lost --------|
                                 the step that the next group starts from

`pipelines.runtime.group_time` says where the time of one group went.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.runtime.drivers import Span, read_spans
from pipelines.runtime.events import Event, Start, groups, read_events
from pipelines.runtime.group_time import (
    OTHER,
    PRODUCTIVE,
    RESTART,
    SETUP,
    Group,
    GroupTime,
    gap,
    in_order,
)


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
    runs = [Group.of(each) for each in groups(events)]
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
    seconds = Counter(gap(known, finished, spans, after))
    for time in times:
        seconds.update(time.seconds)
    return Account(stage=stage, wall=finished - began, seconds=in_order(seconds), groups=times)


def total(accounts: Iterable[Account]) -> Account:
    """The sum of several stages."""
    each = list(accounts)
    seconds: Counter[str] = Counter()
    for account in each:
        seconds.update(account.seconds)
    return Account(
        stage="all", wall=sum(account.wall for account in each), seconds=in_order(seconds)
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
