"""A training run on one worker: its parts, and the actions of the loop on them."""

import itertools
import math
import socket
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch

from cluster import group
from cluster.batch_layout import BatchLayout
from cluster.checkpoint.async_saver import PAUSES, Saved, Saver
from cluster.checkpoint.store import latest_good
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.resilience.fault_injection import Fault
from cluster.resilience.goodput import Stopwatch
from cluster.resilience.lease import Lease
from cluster.workers import current
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.order.global_order import GlobalOrder
from convnextv2.tasks.batch import Batch, on_device
from pipelines.runtime import events
from pipelines.runtime.events import EventLog
from pipelines.training.build import build_engine, build_loader, seed_step
from pipelines.training.job import Plan, TrainJob, Validator
from pipelines.training.pace import Pace

CHECKPOINTS = "checkpoints"


@dataclass
class Run:
    """The parts of a training run on one worker; `noted` has the latest metrics."""

    job: TrainJob
    clock: Stopwatch
    pace: Pace
    batch_layout: BatchLayout
    order: GlobalOrder
    plan: Plan
    engine: DeepSpeedEngine
    loader: BetonLoader
    validator: Validator | None
    saver: Saver
    event_log: EventLog
    fault: Fault | None
    noted: dict[str, float] = field(default_factory=dict)

    @classmethod
    def assemble(cls, job: TrainJob, clock: Stopwatch) -> "Run":
        """Build every part from the job's configuration."""
        recipe = job.recipe
        batch_layout = BatchLayout(
            recipe.global_batch_size, recipe.micro_batch_size, group.world_size()
        )
        order = job.order()
        plan = Plan.of(recipe, order)
        lease = Lease.take(job.directory / CHECKPOINTS)
        lease.watch()
        event_log = EventLog(job.directory, active=group.rank() == 0, generation=lease.generation)
        pace = Pace(job, clock)
        engine = build_engine(job, batch_layout, pace)
        current.worker().milestone("engine")
        return cls(
            job,
            clock,
            pace,
            batch_layout,
            order,
            plan,
            engine,
            build_loader(job),
            job.build_validator(job) if job.build_validator and plan.evaluate_every else None,
            Saver(
                job.directory / CHECKPOINTS,
                job.keep_policy(plan),
                asynchronous=recipe.asynchronous_checkpoints,
                lease=lease,
                pauses=PAUSES,
                max_failed=job.cluster.max_failed_saves,
                lost=lambda lost: event_log.write(events.SaveFailed(**vars(lost))),
            ),
            event_log,
            Fault.planned(),
        )

    def resume(self) -> int:
        """Load the last good checkpoint, if there is one, and allocate the memory for saving.

        Returns:
            The step to continue from.
        """
        root = self.job.directory / CHECKPOINTS
        search = group.broadcast(latest_good(root) if group.rank() == 0 else None)
        assert search is not None
        for path, reason in search.rejected:
            self.event_log.write(events.Rejected(step=0, path=str(path), reason=reason))
        step = 0
        if search.found is not None:
            self.engine.restore(search.found.path, search.found.notes)
            self.noted = search.found.notes["metrics"]
            step = search.found.step
        self.saver.prepare(self.engine.fragments)
        here = current.worker()
        here.beacon.began = here.beacon.saved = step
        here.beacon.stepped(step)
        here.milestone("weights")
        self.pace.begin(step)
        self.event_log.write(
            events.Start(
                step=step,
                workers=group.world_size(),
                total=self.plan.total_steps,
                hosts=group.all_gather(socket.gethostname()),
                seconds=self.clock.seconds,
            )
        )
        return step

    def global_batches(self, step: int) -> Iterator[Iterator[Batch]]:
        """This worker's micro batches of every global batch from `step` to the end."""
        while step < self.plan.total_steps:
            epoch, start = divmod(step, self.order.batches_per_epoch)
            samples = self.order.worker_batches(
                epoch, rank=group.rank(), world_size=group.world_size(), start=start
            )
            batches = on_device(self.loader.batches(samples, epoch), self.engine.device)
            with closing(self._timed(batches)) as stream:
                left = self.plan.total_steps - step
                for _ in range(min(left, self.order.batches_per_epoch - start)):
                    seed_step(self.job.seed, step, group.rank())
                    yield itertools.islice(stream, self.batch_layout.accumulation)
                    step += 1

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

    def log(self, step: int, metrics: dict[str, torch.Tensor]) -> None:
        """Write the metrics of a step, as means over workers; or only that the step was skipped."""
        values, each = group.mean_and_each(metrics, self.pace.own_seconds(step))
        pace = self.pace.values(step, each)
        self.pace.begin(step)
        if not math.isfinite(values["loss"] + values["grad_norm"]):
            skipped = self.engine.skipped_steps
            self.event_log.write(events.Skipped(step=step, skipped_steps=skipped))
            return
        self.noted |= values
        position = {
            "images": step * self.order.global_batch_size,
            "epoch": step / self.order.batches_per_epoch,
            "lr": self.plan.schedule.at(step - 1),
            "skipped_steps": self.engine.skipped_steps,
        }
        self.event_log.write(
            events.Point(step=step, values=position | pace | values, seconds=self.clock.seconds)
        )

    def evaluate(self, step: int) -> None:
        """Score the validation split with the weights and with their moving average, if any."""
        assert self.validator is not None
        with self.engine.evaluating() as module:
            values = self.validator.run(module, self.engine.device)
        if self.job.recipe.ema_decay is not None:
            with self.engine.evaluating(ema=True) as module:
                ema = self.validator.run(module, self.engine.device)
            values |= {f"{name}_ema": value for name, value in ema.items()}
        self.noted |= values
        self.event_log.write(events.Validation(step=step, values=values))

    def save(self, step: int) -> None:
        """Begin a checkpoint, which is written while training continues."""
        self._told(self.saver.save(step, self.engine.fragments, self._notes(step)))

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint, close the cache and log the end."""
        with self.clock.phase("checkpoint"):
            self._told(self.saver.finish())
        if self.loader.cache is not None:
            self.loader.cache.close()
        self.event_log.write(events.End(step=step, seconds=self.clock.seconds))

    def _told(self, saved: Saved | None) -> None:
        """Log an event for a checkpoint that is now on disk, with the time that writing it took."""
        if saved is not None:
            current.worker().beacon.saved = saved.checkpoint.step
            self.event_log.write(
                events.Checkpoint(
                    step=saved.checkpoint.step,
                    bytes=saved.checkpoint.bytes,
                    written_seconds=saved.seconds,
                    seconds=self.clock.seconds,
                )
            )

    def _notes(self, step: int) -> dict[str, object]:
        """What a checkpoint records besides the fragments.

        The schedule and all random numbers are functions of the step, so there is no other state.
        """
        return {
            "samples": step * self.order.global_batch_size,
            "epoch": step / self.order.batches_per_epoch,
            "total_steps": self.plan.total_steps,
            "seed": self.job.seed,
            "updates": self.engine.updates,
            "skipped_steps": self.engine.skipped_steps,
            "metrics": self.noted,
            "world_size": group.world_size(),
            "zero_stage": self.job.cluster.zero.stage,
            "dtype": self.job.recipe.dtype,
            "weights": self.job.metadata,
            "provenance": self.job.provenance,
        }

    def fault_before(self, step: int) -> None:
        if self.fault is not None:
            self.fault.fire(group.rank(), step)
