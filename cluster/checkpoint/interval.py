"""How often to save, so that checkpoints and failures together take the least time.

A checkpoint every T seconds holds training up for the share C / T of the time, where C is how long
one of them does, and a failure repeats T / 2 on average. With a mean time to failure M, both
together are least at

    T = sqrt(2 C M)                (Young 1974; Daly 2006 has the terms of higher order)

C and the time of a step are measured. M is not known at first: published are 8,100 GPU-hours per
failure (7.9 h on 1,024 GPUs, Meta's RSC clusters, arXiv 2410.21680) and 50,700 (419 failures in 54
days on 16,384 GPUs, Llama 3, arXiv 2407.21783). A run starts from 10,000 hours of a worker, with
the weight of half a failure in 5,000 of them: a Gamma prior of the failure rate, as weak as
Jeffreys', which what befalls the run itself soon outweighs. T depends on the square root of M, and
the cost near its minimum hardly on T.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from cluster import group

PRIOR_FAILURES, PRIOR_SECONDS = 0.5, 5000 * 3600.0
"""Worker-seconds, and the failures that are taken to have happened in them before the run."""
FIRST_STEPS = 50
"""The first checkpoint of a run; before it nothing is known of how long one takes."""
LONGEST_SECONDS = 3600.0
"""However rare failures seem to be, no more than this is at stake."""
WRITING = 2.0
"""T is at least so many times what writing takes in the background: the next save waits for it."""
MUCH = 1.25
"""A new interval is taken when it differs from the old one by more than this factor."""


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """Failures of a run so far, and the seconds that its workers have worked, added up."""

    failures: int = 0
    worker_seconds: float = 0.0

    def mean_time_to_failure(self, workers: int) -> float:
        """Seconds until the next failure of a group, expected from the prior and this record."""
        rate = (PRIOR_FAILURES + self.failures) / (PRIOR_SECONDS + self.worker_seconds)
        return 1 / (rate * workers)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An interval in steps, and what it follows from, in seconds."""

    steps: int
    block: float
    writing: float
    step: float
    mean_time_to_failure: float
    failures: int

    @classmethod
    def of(
        cls, *, block: float, writing: float, step: float, workers: int, record: FailureRecord
    ) -> "Choice":
        """Young's interval, within its limits."""
        until_failure = record.mean_time_to_failure(workers)
        seconds = min(max(math.sqrt(2 * block * until_failure), WRITING * writing), LONGEST_SECONDS)
        return cls(
            steps=max(1, round(seconds / step)),
            block=block,
            writing=writing,
            step=step,
            mean_time_to_failure=until_failure,
            failures=record.failures,
        )


class AutoInterval:
    """Decides when the next checkpoint is due; rank 0 measures, and all workers do as it says.

    Args:
        step: From which this group goes on.
        record: Of the groups before; used on rank 0.
        steps: The interval that was chosen before, if any.
        now: The clock in seconds.

    Steps are those that were trained: steps that are passed over take no time.
    """

    def __init__(
        self,
        step: int,
        record: FailureRecord,
        steps: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._now = record, now
        self.steps = steps
        self.writing = 0.0
        self._last = self._since_step = step
        self._first = step + 1
        self._began = self._since = now()
        self._blocks: deque[float] = deque(maxlen=5)

    def due(self, step: int) -> bool:
        """Whether to save after this step; called after every step."""
        if step == self._first:
            # It compiles kernels, and says nothing of the time that other steps take.
            self._since, self._since_step = self._now(), step
        return step >= self._last + (self.steps or FIRST_STEPS)

    def saved(self, step: int, block: float) -> Choice | None:
        """After a save that held training up for `block` seconds; collective.

        Returns:
            The new interval and its reasons on every worker, if it differs much from the old one.
        """
        self._blocks.append(block)
        choice = None
        if group.rank() == 0 and step > self._since_step:
            choice = self._choose(step)
        choice = group.broadcast(choice)
        self._last = self._since_step = step
        self._since = self._now()
        if choice is not None:
            self.steps = choice.steps
        return choice

    def _choose(self, step: int) -> Choice | None:
        now, workers = self._now(), group.world_size()
        record = FailureRecord(
            failures=self._record.failures,
            worker_seconds=self._record.worker_seconds + workers * (now - self._began),
        )
        choice = Choice.of(
            block=median(self._blocks),
            writing=self.writing,
            step=(now - self._since - self._blocks[-1]) / (step - self._since_step),
            workers=workers,
            record=record,
        )
        if self.steps is None:
            return choice
        ratio = choice.steps / self.steps
        return choice if max(ratio, 1 / ratio) > MUCH else None
