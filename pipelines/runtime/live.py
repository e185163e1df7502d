"""Reports on a training stage while it runs: goodput, slow workers, and Prometheus metrics."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.runtime.drivers import Span, read_spans
from pipelines.runtime.events import Checkpoint, End, Event, Measured, Point, Start, read_events
from pipelines.runtime.goodput import Account, account_of, accounts_of, total

COST = 0.01
"""The share of its time that the driver may spend on computing goodput, which reads the log."""
SLOW, POINTS = 1.25, 5
"""A worker is slow if it needs SLOW times the median at POINTS points of the log in a row."""
STEP, RATE, LOSS, GOODPUT, WORKERS, CHECKPOINT, INCIDENTS = (
    "convnextv2_step",
    "convnextv2_images_per_second",
    "convnextv2_loss",
    "convnextv2_goodput_ratio",
    "convnextv2_workers",
    "convnextv2_checkpoint_step",
    "convnextv2_incidents_total",
)
METRICS = {
    STEP: "Optimizer steps done",
    RATE: "Images per second since the last point of the log",
    LOSS: "Loss at the last point of the log",
    GOODPUT: "Productive share of the run's training time so far",
    WORKERS: "Workers of the group at work",
    CHECKPOINT: "Step of the newest checkpoint",
    INCIDENTS: "Incidents of the run since its driver began, by cause",
}
"""Descriptions of the metrics at Ray's Prometheus endpoint; docs/recovery.md lists them, too."""


class Metrics(Protocol):
    """The interface of `cluster.ray.prometheus.RayMetrics`."""

    def set(self, name: str, value: float) -> None: ...
    def count(self, name: str, **labels: str) -> None: ...


class Live:
    """Follows the events of the stage that this driver is running.

    Args:
        run_dir: The folder of the run.
        directory: The folder of the stage, which has the driver's own notes, too.
        stage: The name of the stage.
        metrics: Receives `METRICS`.
        say: Called with sentences for the screen.

    Attributes:
        incident_log: The file with the incidents of all stages.
    """

    def __init__(
        self,
        run_dir: Path,
        directory: Path,
        stage: str,
        metrics: Metrics,
        say: Callable[[str], None],
    ) -> None:
        self._run_dir, self._stage, self._metrics, self._say = run_dir, stage, metrics, say
        self.incident_log = run_dir / incidents.FILE
        self._others = accounts_of(run_dir, but=directory)
        self._events = read_events(directory)
        *self._before, self._driver = read_spans(directory) or [Span(time.time(), time.time())]
        self._began = (self._before or [self._driver])[0].began
        self._faults = incidents.read(run_dir)
        self._slow = SlowWorkers()
        self._goodput = 0.0
        self._due = 0.0

    def follow(self, events: Sequence[Event]) -> list[Measured]:
        """Process new events; returns the goodput at every checkpoint and at the end."""
        self._events += events
        for event in events:
            match event:
                case Start():
                    self._slow = SlowWorkers(event.hosts)
                    self._metrics.set(WORKERS, event.workers)
                case Point():
                    self._take(event)
                case Checkpoint():
                    self._metrics.set(CHECKPOINT, event.step)
        return [
            Point(step=event.step, time=event.time, values=_numbers(self._reckon()))
            for event in events
            if isinstance(event, Checkpoint | End)
        ]

    @property
    def words(self) -> str:
        """The run's goodput so far, in words; "" before anything has been trained."""
        if time.monotonic() > self._due:
            self._reckon()
        return f"goodput {self._goodput:.0%}" if self._goodput else ""

    def note(self, incident: Incident) -> None:
        """Record an incident; called when it happens, and again when training continues."""
        incidents.append(self._run_dir, incident)
        self._faults = incidents.latest([*self._faults, incident])
        if not incident.recovered:
            self._metrics.count(INCIDENTS, cause=incident.cause)

    @property
    def incident_metrics(self) -> dict[str, float]:
        """Of this stage, its earlier drivers included: how often each cause, and what it cost."""
        # An older stage of this name, whose settings differed or which was done again, had its own.
        mine = [
            each for each in self._faults if each.stage == self._stage and each.time >= self._began
        ]
        if not mine:
            return {}
        causes = Counter(f"incidents.{each.cause}" for each in mine)
        return {
            **causes,
            "incidents.lost_steps": sum(each.lost_steps for each in mine),
            "incidents.downtime_seconds": sum(each.downtime for each in mine),
        }

    def _take(self, point: Point) -> None:
        self._metrics.set(STEP, point.step)
        for metric, name in ((LOSS, "loss"), (RATE, "images_per_second")):
            if name in point.values:
                self._metrics.set(metric, point.values[name])
        sentence = self._slow.look(point)
        if sentence:
            self._say(sentence)

    def _reckon(self) -> Account:
        """Where the stage's time has gone so far, up to now."""
        began = time.monotonic()
        spans = [*self._before, Span(self._driver.began, time.time())]
        account = account_of(self._stage, self._events, spans, self._faults)
        self._goodput = total([*self._others, account]).goodput
        self._metrics.set(GOODPUT, self._goodput)
        self._due = began + (time.monotonic() - began) / COST
        return account


class SlowWorkers:
    """Finds the worker that the others wait for; `hosts` has the workers' machines by rank."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self._hosts = hosts
        self._rank, self._in_a_row = -1, 0

    def look(self, point: Point) -> str | None:
        """A sentence, once, when a worker has been slow for `POINTS` points; else None."""
        values = point.values
        if not values.get("median_seconds"):
            return None
        rank, seconds = int(values["slowest_rank"]), values["slowest_seconds"]
        times = seconds / values["median_seconds"]
        again = self._in_a_row + 1 if rank == self._rank else 1
        self._rank, self._in_a_row = rank, again if times > SLOW else 0
        if self._in_a_row != POINTS:
            return None
        host = f" on {self._hosts[rank]}" if rank < len(self._hosts) else ""
        return (
            f"worker {rank}{host} is slow: data and forward pass of a step take it {seconds:.3g} "
            f"s, {times:.1f} times the median, and the others wait for it"
        )


def _numbers(account: Account) -> dict[str, float]:
    """The metrics for MLflow: `goodput`, and the seconds of every part."""
    parts = {f"seconds.{part}": seconds for part, seconds in account.seconds.items()}
    return {"goodput": account.goodput, **parts}
