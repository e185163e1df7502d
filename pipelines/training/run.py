"""A training run on one worker: its parts, and the actions of the loop on them."""

import math
import socket
from dataclasses import dataclass, field

import torch

from cluster import group
from cluster.batch_layout import BatchLayout
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.placement import worker_device
from cluster.resilience.fault_injection import Injector
from cluster.resilience.goodput import Stopwatch
from cluster.resilience.lease import Lease
from cluster.workers import current
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.order.global_order import GlobalOrder
from pipelines.runtime import events
from pipelines.runtime.events import EventLog
from pipelines.training.anomalies.spikes import (
    LossSpike,
    SpikeDetector,
    Windows,
    leave_out,
    look_back,
)
from pipelines.training.build import build_engine, build_loader
from pipelines.training.checkpoints import CHECKPOINTS, Checkpoints
from pipelines.training.data.feed import Feed
from pipelines.training.data.sample_log import SampleLog
from pipelines.training.gpu import check_gpu
from pipelines.training.job import Plan, TrainJob, Validator
from pipelines.training.pace import Pace


@dataclass
class Run:
    """The parts of a training run on one worker.

    Attributes:
        gpu_users: A phrase on other processes that use this worker's GPU; "" for none.
        noted: The latest metrics.
    """

    job: TrainJob
    clock: Stopwatch
    pace: Pace
    order: GlobalOrder
    plan: Plan
    engine: DeepSpeedEngine
    loader: BetonLoader
    feed: Feed
    validator: Validator | None
    lease: Lease
    checkpoints: Checkpoints
    spikes: SpikeDetector
    event_log: EventLog
    injector: Injector
    samples: SampleLog
    gpu_users: str
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
        event_log = EventLog(job.directory, active=group.rank() == 0, lease=lease)
        pace = Pace(job, clock)
        spikes = SpikeDetector(recipe.spike_factor)
        device = worker_device(use_gpu=job.cluster.use_gpu)
        gpu_users = check_gpu(job, device)
        engine = build_engine(job, device, batch_layout, pace, spikes)
        injector = Injector.planned()
        injector.watch(engine.module)
        current.worker().milestone("engine")
        loader, accumulation = build_loader(job), batch_layout.accumulation
        return cls(
            job,
            clock,
            pace,
            order,
            plan,
            engine,
            loader,
            Feed(order, loader, engine, clock, job.seed, accumulation, plan.total_steps),
            job.build_validator(job) if job.build_validator and plan.evaluate_every else None,
            lease,
            Checkpoints(job, plan, lease, event_log, clock),
            spikes,
            event_log,
            injector,
            SampleLog.planned(job, group.rank(), lease.generation),
            gpu_users,
        )

    def resume(self) -> int:
        """Load the last good checkpoint, if there is one, and allocate the memory for saving.

        Returns:
            The step to continue from.
        """
        root = self.checkpoints.root
        search, self.feed.windows = group.broadcast(look_back(self.job.directory, root))
        for path, reason in search.rejected:
            self.event_log.write(events.Rejected(step=0, path=str(path), reason=reason))
        step, notes = 0, {}
        if search.found is not None:
            step, notes = search.found.step, search.found.notes
            self.engine.restore(search.found.path, notes)
            self.noted = notes["metrics"]
            self.spikes.recent.extend(notes.get("recent_losses", ()))
            self.feed.windows |= Windows.noted(notes)
        self.checkpoints.begin(step, self.engine.fragments, notes)
        here = current.worker()
        here.beacon.began = here.beacon.saved = step
        here.beacon.stepped(step)
        here.milestone("weights")
        self.pace.begin(step)
        workers = group.all_gather((socket.gethostname(), self.gpu_users))
        self.event_log.write(
            events.Start(
                step=step,
                workers=group.world_size(),
                total=self.plan.total_steps,
                hosts=[host for host, _ in workers],
                seconds=self.clock.seconds,
            )
        )
        shared = [(rank, host, users) for rank, (host, users) in enumerate(workers) if users]
        if shared:
            rank, host, users = shared[0]
            self.event_log.write(
                events.SharedGPU(step=step, rank=rank, host=host, users=users, gpus=len(shared))
            )
        return step

    def log(self, step: int, metrics: dict[str, torch.Tensor]) -> None:
        """Write the metrics of a step, as means over workers; or only that the step was skipped."""
        trained = step - self.feed.passed_over
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
        return self.checkpoints.due(step, step - self.feed.passed_over)

    def save(self, step: int) -> None:
        """Begin a checkpoint, which is written while training continues."""
        trained, fragments = step - self.feed.passed_over, self.engine.fragments
        self.checkpoints.save(step, trained, fragments, self._notes(step))

    def leave_out(self, spike: LossSpike) -> current.LossSpiked:
        """Note the steps around a spike, which the next group leaves out; collective.

        Raises:
            TooManySpikes: When there have been too many.
        """
        with self.clock.phase("checkpoint"):
            self.checkpoints.wait()
            window = leave_out(
                *(self.job.directory, self.checkpoints.root, self.feed.windows, spike),
                reach=self.plan.spike_window,
                total=self.plan.total_steps,
                lease=self.lease,
            )
        return current.LossSpiked(window.in_words(), to_blame=group.rank() == 0)

    def finish(self, step: int) -> None:
        """Wait for the last checkpoint, close the cache, log the end and wait for the logs."""
        with self.clock.phase("checkpoint"):
            self.checkpoints.finish()
        if self.loader.cache is not None:
            self.loader.cache.close()
        self.event_log.write(events.End(step=step, seconds=self.clock.seconds))
        with self.clock.phase("checkpoint"):  # It has the limit of what waits for storage.
            self.event_log.flush()
            self.samples.flush()

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
            "left_out": self.feed.windows.as_notes(),
            "recent_losses": list(self.spikes.recent),
            "checkpoint_interval": self.checkpoints.interval,
            "metrics": self.noted,
            "world_size": group.world_size(),
            "zero_stage": self.job.cluster.zero.stage,
            "dtype": self.job.recipe.dtype,
            "weights": self.job.metadata,
            "provenance": self.job.provenance,
        }

    def strike(self, phase: str, step: int) -> None:
        """Fail here if that is planned, see `cluster.resilience.fault_injection`."""
        self.injector.strike(group.rank(), step, phase, group.world_size())
