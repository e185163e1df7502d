"""Which steps a worker trains, and with which batches."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from cluster import group
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.resilience.goodput import Stopwatch
from cluster.workers import current
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.order.global_order import GlobalOrder
from convnextv2.tasks.batch import Batch, on_device
from pipelines.training.anomalies.spikes import Windows
from pipelines.training.build import seed_step


@dataclass
class Feed:
    """The global batches of a run, in order, without those that are left out.

    Attributes:
        accumulation: Micro batches of this worker in a global batch.
        windows: The steps that are left out.
        passed_over: How many of them this group of workers has left behind.
    """

    order: GlobalOrder
    loader: BetonLoader
    engine: DeepSpeedEngine
    clock: Stopwatch
    seed: int
    accumulation: int
    total_steps: int
    windows: Windows = field(default_factory=Windows)
    passed_over: int = 0

    def global_batches(self, step: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Every step from `step` to the end that is not left out, with this worker's micro batches
        of its global batch.
        """
        while (step := self._next(step)) < self.total_steps:
            epoch, start = divmod(step, self.order.batches_per_epoch)
            end = min(self.total_steps, step - start + self.order.batches_per_epoch)
            parts = self.order.worker_batches(
                epoch, rank=group.rank(), world_size=group.world_size(), start=start
            )
            samples = (part for each, part in enumerate(parts, step) if each not in self.windows)
            batches = on_device(self.loader.batches(samples, epoch), self.engine.device)
            with closing(self._timed(batches)) as stream:
                while step < end:
                    seed_step(self.seed, step, group.rank())
                    yield step, itertools.islice(stream, self.accumulation)
                    step = self._next(step + 1)

    def reached(self, step: int) -> int:
        """How far training is after `step` steps: at its end, if all others are left out."""
        if self.windows.after(step) < self.total_steps:
            return step
        self._pass_over(self.total_steps - step)
        return self.total_steps

    def _next(self, step: int) -> int:
        """The next step that is trained, from `step` on; those before it count as left out."""
        following = self.windows.after(step)
        if following < self.total_steps:
            self._pass_over(following - step)
        return following

    def _pass_over(self, steps: int) -> None:
        if steps:
            self.engine.pass_over(steps)
            self.passed_over += steps

    def _timed(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Count the time spent waiting for a batch as phase `data`."""
        with closing(batches):
            while True:
                with self.clock.phase("data"):
                    batch = next(batches, None)
                if batch is None:
                    return
                current.worker().milestone("first batch")
                yield batch
