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
from cluster.checkpoint.store import RestoreSearch, latest_good
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
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.job import Plan, TrainJob, Validator
from pipelines.training.pace import Pace
from pipelines.training.spikes import (
    LossSpike,
    SpikeDetector,
    Windows,
    leave_out,
    set_unfit_aside,
)


@dataclass
class Run:
    """The parts of a training run on one worker.

    Attributes:
        noted: The latest metrics.
        windows: The steps that are left out.
        passed_over: How many of them this group of workers has left behind.
    """

    job: TrainJob
    clock: Stopwatch
    pace: Pace
    batch_layout: BatchLayout
    order: GlobalOrder
    plan: Plan
    engine: DeepSpeedEngine
    loader: BetonLoader
    validator: Validator | None
    lease: Lease
    checkpoints: Checkpoints
    spikes: SpikeDetector
    event_log: EventLog
    fault: Fault | None
    noted: dict[str, float] = field(default_factory=dict)
    windows: Windows = field(default_factory=Windows)
    passed_over: int = 0

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
        event_log = EventLog(job.directory, active=group.rank() == 0, generation=lease.generation)
        pace = Pace(job, clock)
        spikes = SpikeDetector(recipe.spike_factor)
        engine = build_engine(job, batch_layout, pace, spikes)
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
            lease,
            Checkpoints(job, plan, lease, event_log, clock),
            spikes,
            event_log,
            Fault.planned(),
        )

    def resume(self) -> int:
        """Load the last good checkpoint, if there is one, and allocate the memory for saving.

        Returns:
            The step to continue from.
        """
        search, self.windows = group.broadcast(self._look_back())
        for path, reason in search.rejected:
            self.event_log.write(events.Rejected(step=0, path=str(path), reason=reason))
        step, notes = 0, {}
        if search.found is not None:
            step, notes = search.found.step, search.found.notes
            self.engine.restore(search.found.path, notes)
            self.noted = notes["metrics"]
            self.spikes.recent.extend(notes.get("recent_losses", ()))
            self.windows = self.windows.together_with(Windows.of_notes(notes.get("left_out", ())))
        self.checkpoints.begin(step, self.engine.fragments, notes)
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

    def _look_back(self) -> tuple[RestoreSearch, Windows]:
        """On rank 0: which steps are left out, and the last good checkpoint without them."""
        if group.rank() != 0:
            return RestoreSearch(None), Windows()
        windows = Windows.read(self.job.directory)
        set_unfit_aside(self.checkpoints.root, windows)
        return latest_good(self.checkpoints.root), windows

    def global_batches(self, step: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Every step from `step` to the end that is not left out, with this worker's micro batches
        of its global batch.
        """
        while (step := self._next(step)) < self.plan.total_steps:
            epoch, start = divmod(step, self.order.batches_per_epoch)
            end = min(self.plan.total_steps, step - start + self.order.batches_per_epoch)
            parts = self.order.worker_batches(
                epoch, rank=group.rank(), world_size=group.world_size(), start=start
            )
            samples = (part for each, part in enumerate(parts, step) if each not in self.windows)
            batches = on_device(self.loader.batches(samples, epoch), self.engine.device)
            with closing(self._timed(batches)) as stream:
                while step < end:
                    seed_step(self.job.seed, step, group.rank())
                    yield step, itertools.islice(stream, self.batch_layout.accumulation)
                    step = self._next(step + 1)

    def _next(self, step: int) -> int:
        """The next step that is trained, from `step` on; those before it count as left out."""
        following = self.windows.after(step)
        if following < self.plan.total_steps:
            self._pass_over(following - step)
        return following

    def reached(self, step: int) -> int:
        """How far training is after `step` steps: at its end, if all others are left out."""
        if self.windows.after(step) < self.plan.total_steps:
            return step
        self._pass_over(self.plan.total_steps - step)
        return self.plan.total_steps

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

    def log(self, step: int, metrics: dict[str, torch.Tensor]) -> None:
        """Write the metrics of a step, as means over workers; or only that the step was skipped."""
        trained = step - self.passed_over
        values, each = group.mean_and_each(metrics, self.pace.own_seconds(trained))
        pace = self.pace.values(trained, each)
        self.pace.begin(trained)
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

    def save_is_due(self, step: int) -> bool:
        return self.checkpoints.due(step, step - self.passed_over)

    def save(self, step: int) -> None:
        """Begin a checkpoint, which is written while training continues."""
        trained, fragments = step - self.passed_over, self.engine.fragments
        self.checkpoints.save(step, trained, fragments, self._notes(step))

    def leave_out(self, spike: LossSpike) -> current.LossSpiked:
        """Note the steps around a spike, which the next group leaves out; collective.

        Raises:
            TooManySpikes: When there have been too many.
        """
        self.checkpoints.wait()
        window = leave_out(
            *(self.job.directory, self.checkpoints.root, self.windows, spike),
            reach=self.plan.spike_window,
            total=self.plan.total_steps,
            lease=self.lease,
        )
        return current.LossSpiked(window.in_words(), to_blame=group.rank() == 0)

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint, close the cache and log the end."""
        with self.clock.phase("checkpoint"):
            self.checkpoints.finish()
        if self.loader.cache is not None:
            self.loader.cache.close()
        self.event_log.write(events.End(step=step, seconds=self.clock.seconds))

    def _notes(self, step: int) -> dict[str, object]:
        """What a checkpoint records besides the fragments.

        The schedule and all random numbers are functions of the step, so there is no other state
        than what was left out, and by what it was judged.
        """
        return {
            "samples": step * self.order.global_batch_size,
            "epoch": step / self.order.batches_per_epoch,
            "total_steps": self.plan.total_steps,
            "seed": self.job.seed,
            "updates": self.engine.updates,
            "skipped_steps": self.engine.skipped_steps,
            "left_out": self.windows.as_notes(),
            "recent_losses": list(self.spikes.recent),
            "checkpoint_interval": self.checkpoints.interval,
            "metrics": self.noted,
            "world_size": group.world_size(),
            "zero_stage": self.job.cluster.zero.stage,
            "dtype": self.job.recipe.dtype,
            "weights": self.job.metadata,
            "provenance": self.job.provenance,
        }

    def fault_before(self, step: int) -> None:
        if self.fault is not None and self.fault.fire(group.rank(), step):
            self.engine.spoil_next_loss()
