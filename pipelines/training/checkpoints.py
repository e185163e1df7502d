"""The checkpoints of a training run: when they are due, and what the log says of them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster import group
from cluster.checkpoint.async_saver import PAUSES, Saved, Saver
from cluster.checkpoint.fragments import StateFragment
from cluster.checkpoint.interval import AutoInterval, Choice, FailureRecord
from cluster.resilience.goodput import Stopwatch
from cluster.resilience.lease import Lease
from cluster.workers import current
from pipelines.runtime import events
from pipelines.runtime.events import End, Event, EventLog, Start, read_events
from pipelines.training.job import Plan, TrainJob

CHECKPOINTS = "checkpoints"


class Checkpoints:
    """Saves a run's state when it is due; all workers call its methods in the same order.

    `trained` are the steps that this group has trained, counted on from where it began: steps that
    are passed over take no time.

    Attributes:
        root: Their folder.
    """

    def __init__(
        self, job: TrainJob, plan: Plan, lease: Lease, event_log: EventLog, clock: Stopwatch
    ) -> None:
        self._job, self._plan, self._event_log, self._clock = job, plan, event_log, clock
        self.root = job.directory / CHECKPOINTS
        self._saver = Saver(
            self.root,
            job.keep_policy(plan),
            asynchronous=job.recipe.asynchronous_checkpoints,
            lease=lease,
            pauses=PAUSES,
            max_failed=job.cluster.max_failed_saves,
            lost=lambda lost: event_log.write(events.SaveFailed(**vars(lost))),
        )
        self._auto: AutoInterval | None = None

    def begin(
        self, step: int, fragments: list[StateFragment], notes: Mapping[str, Any] | None
    ) -> None:
        """Get ready to save; training goes on from `step`, whose checkpoint has these notes.

        Raises:
            MemoryError: When there is not enough for a copy of the fragments.
        """
        self._saver.prepare(fragments)
        if self._job.recipe.checkpoint_every == "auto":
            record = FailureRecord()
            if group.rank() == 0:
                record = record_of(read_events(self._job.directory))
            self._auto = AutoInterval(step, record, (notes or {}).get("checkpoint_interval"))

    @property
    def interval(self) -> int | None:
        """The interval in steps that `auto` has chosen."""
        return None if self._auto is None else self._auto.steps

    def due(self, step: int, trained: int) -> bool:
        """Whether to save after this step. With `auto`, what is to be kept is saved, too."""
        if self._auto is None:
            return step % self._plan.checkpoint_every == 0
        keep, evaluate = self._plan.keep_every, self._plan.evaluate_every
        return (
            self._auto.due(trained)
            or (keep > 0 and step % keep == 0)
            or (self._job.recipe.keep_best is not None and evaluate > 0 and step % evaluate == 0)
        )

    def save(
        self, step: int, trained: int, fragments: list[StateFragment], notes: dict[str, Any]
    ) -> None:
        """Begin a checkpoint, which is written while training continues."""
        began = time.perf_counter()
        self._told(self._saver.save(step, fragments, notes))
        if self._auto is not None:
            choice = self._auto.saved(trained, time.perf_counter() - began)
            if choice is not None:
                self._event_log.write(events.Interval(step=step, values=values_of(choice)))

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, which may be given up."""
        self._told(self._saver.wait())

    def finish(self) -> None:
        """Wait for the last checkpoint, which must succeed."""
        self._told(self._saver.finish())

    def _told(self, saved: Saved | None) -> None:
        """Log an event for a checkpoint that is now on disk, with the time that writing it took."""
        if saved is None:
            return
        current.worker().beacon.saved = saved.checkpoint.step
        if self._auto is not None:
            self._auto.writing = saved.seconds
        self._event_log.write(
            events.Checkpoint(
                step=saved.checkpoint.step,
                bytes=saved.checkpoint.bytes,
                written_seconds=saved.seconds,
                seconds=self._clock.seconds,
            )
        )


def record_of(log: Sequence[Event]) -> FailureRecord:
    """The failures of earlier groups: those that did not save and leave, whatever ended them."""
    failures, worker_seconds = 0, 0.0
    for start, *others in events.groups(log):
        assert isinstance(start, Start)
        if others:
            worker_seconds += start.workers * (others[-1].time - start.time)
        failures += not any(isinstance(event, End) for event in others)
    return FailureRecord(failures=failures, worker_seconds=worker_seconds)


def values_of(choice: Choice) -> dict[str, float]:
    """A choice for the log."""
    return {
        "interval_steps": choice.steps,
        "block_seconds": choice.block,
        "step_seconds": choice.step,
        "hours_to_failure": choice.mean_time_to_failure / 3600,
        "failures": choice.failures,
    }
