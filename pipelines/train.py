"""The training loop, as every worker runs it.

    resume -> { batches, step, log, checkpoint } -> end

Everything random is a function of (seed, step) or (seed, epoch, sample), so the position is one
integer, the step, and a run that was killed and resumed on the same workers is bitwise the run
that was not.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster import group
from cluster.checkpoint import latest_good, prune, publish
from cluster.engine import DeepSpeedEngine, EngineSettings, mean_over_workers, worker_device
from cluster.faults import Fault
from cluster.goodput import Stopwatch
from cluster.topology import Topology
from convnextv2.data.load import Batch, BetonLoader
from convnextv2.data.local_cache import LocalCache
from convnextv2.data.order import GlobalOrder
from convnextv2.recipe.duration import Duration
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.recipe.schedule import WarmupCosine, scaled_lr
from pipelines.config import DataConfig, FinetuneConfig, PipelineConfig, PretrainConfig
from pipelines.logs import worker_log
from pipelines.metrics import Spool
from pipelines.samples import training_order
from pipelines.views import augmentation, training_view

CHECKPOINTS = "checkpoints"


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite on some worker; all workers stop together."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What a worker needs to know; plain data that travels to any node.

    `build_task` makes the module to train; `directory` is the stage's own on shared storage.
    """

    config: PipelineConfig
    recipe: PretrainConfig | FinetuneConfig
    build_task: Callable[["TrainJob"], nn.Module]
    directory: Path
    log: Path
    shards: Path
    num_classes: int
    initial_weights: Path | None = None

    def order(self) -> GlobalOrder:
        return training_order(self.shards, self.recipe, self.config.data, self.config.seed)

    @property
    def total_steps(self) -> int:
        return self.steps(self.recipe.duration, self.order())

    def steps(self, duration: Duration, order: GlobalOrder, total: int | None = None) -> int:
        return duration.steps(
            batches_per_epoch=order.batches_per_epoch,
            global_batch_size=self.recipe.global_batch_size,
            total_steps=total,
        )


def train(context: dict[str, Any]) -> None:
    """Train `context["job"]` on this worker to its last step."""
    job: TrainJob = context["job"]
    with worker_log(job.log, group.rank()):
        clock = Stopwatch()
        with clock.phase("start-up"):
            run = Run.assemble(job, clock)
            step = run.resume()
        for batches in run.global_batches(step):
            run.fault_before(step)
            with clock.phase("step"):
                metrics = run.engine.train_step(batches, run.schedule.at(step))
            step += 1
            if step % job.config.log_every == 0 or step == run.total_steps:
                with clock.phase("log"):
                    run.log(step, metrics)
            if step % run.checkpoint_every == 0 or step == run.total_steps:
                with clock.phase("checkpoint"):
                    run.save(step)
        run.spool.write("end", step, seconds=clock.seconds)


@dataclass
class Run:
    """The parts of a training run on one worker."""

    job: TrainJob
    clock: Stopwatch
    topology: Topology
    engine: DeepSpeedEngine
    loader: BetonLoader
    order: GlobalOrder
    schedule: WarmupCosine
    checkpoint_every: int
    spool: Spool
    fault: Fault | None

    @classmethod
    def assemble(cls, job: TrainJob, clock: Stopwatch) -> "Run":
        """Build every part from the job's configuration."""
        recipe, config = job.recipe, job.config
        topology = Topology(recipe.global_batch_size, recipe.micro_batch_size, group.world_size())
        order = job.order()
        seed_step(config.seed, 0, 0)  # The same initial weights on every worker.
        task = job.build_task(job)
        rule = GroupRule(
            weight_decay=recipe.weight_decay,
            exempt=recipe.decay_exempt,
            layer_decay=recipe.layer_decay if isinstance(recipe, FinetuneConfig) else 1.0,
            grouping=recipe.layer_decay_groups if isinstance(recipe, FinetuneConfig) else "single",
        )
        engine = DeepSpeedEngine(
            task,
            parameter_groups(task, rule, task.depths),  # type: ignore[arg-type]
            betas=recipe.betas,
            settings=EngineSettings(
                zero=config.cluster.zero,
                precision=config.cluster.dtype,
                grad_clip=recipe.grad_clip,
            ),
            topology=topology,
            device=worker_device(),
        )
        loader = BetonLoader(
            job.shards,
            batch_size=topology.micro_batch_size,
            view=training_view(config.model.image_size, recipe.augment),
            augment=augmentation(recipe.augment),
            seed=config.seed,
            num_workers=config.data.num_workers,
            cache=local_cache(job.shards, config.data),
        )
        total = job.steps(recipe.duration, order)
        schedule = WarmupCosine(
            peak=scaled_lr(recipe.base_lr, recipe.global_batch_size),
            floor=recipe.min_lr,
            total_steps=total,
            warmup_steps=job.steps(recipe.warmup, order, total),
        )
        spool = Spool(job.directory, active=group.rank() == 0)
        every = job.steps(recipe.checkpoint_every, order, total)
        fault = Fault.planned()
        return cls(job, clock, topology, engine, loader, order, schedule, every, spool, fault)

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    def resume(self) -> int:
        """Load the last good checkpoint, if there is one; returns the step to go on from."""
        root = self.job.directory / CHECKPOINTS
        search = group.from_first(latest_good(root) if group.rank() == 0 else None)
        assert search is not None
        for path, reason in search.rejected:
            self.spool.write("rejected", 0, path=str(path), reason=reason)
        step = 0
        if search.found is not None:
            self.engine.load(search.found.path)
            step = search.found.step
        self.spool.write("start", step, workers=group.world_size(), total=self.total_steps)
        return step

    def global_batches(self, step: int) -> Iterator[Iterator[Batch]]:
        """This worker's micro batches of every global batch from `step` to the end."""
        while step < self.total_steps:
            epoch, start = divmod(step, self.order.batches_per_epoch)
            share = self.order.share(
                epoch, rank=group.rank(), world_size=group.world_size(), start=start
            )
            with closing(self._timed(self.loader.batches(share, epoch))) as stream:
                for _ in range(start, self.order.batches_per_epoch):
                    seed_step(self.job.config.seed, step, group.rank())
                    yield itertools.islice(stream, self.topology.accumulation)
                    step += 1

    def _timed(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Move batches to the device; waiting for data is booked as such."""
        while True:
            with self.clock.phase("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch.to(self.engine.device)

    def log(self, step: int, metrics: dict[str, torch.Tensor]) -> None:
        """Average over workers and note a point; all workers see a loss that is not finite."""
        values = mean_over_workers(metrics)
        if not math.isfinite(values["loss"]):
            raise NonFiniteLoss(f"loss is {values['loss']} at step {step}")
        self.spool.write(
            "point",
            step,
            images=step * self.order.global_batch_size,
            epoch=step / self.order.batches_per_epoch,
            lr=self.schedule.at(step - 1),
            **values,
        )

    def save(self, step: int) -> None:
        """Publish a checkpoint and let old ones go."""
        root = self.job.directory / CHECKPOINTS
        publish(root, step, self.engine.save, checkpoint_notes(self.job, self.topology))
        if group.rank() == 0:
            prune(root, self.job.recipe.keep_checkpoints)
        self.spool.write("checkpoint", step, seconds=self.clock.seconds)

    def fault_before(self, step: int) -> None:
        if self.fault is not None:
            self.fault.strike(group.rank(), step)


def local_cache(shards: Path, data: DataConfig) -> LocalCache | None:
    """The node's cache of the shards, copying, if one is configured."""
    if data.cache is None:
        return None
    room = None if data.cache_gb is None else round(data.cache_gb * 1e9)
    return LocalCache(shards, data.cache, room).start()


def checkpoint_notes(job: TrainJob, topology: Topology) -> dict[str, Any]:
    """What must be the same to go on from a checkpoint, and what is good to know about it."""
    return {
        "world_size": topology.world_size,
        "zero_stage": job.config.cluster.zero.stage,
        "dtype": job.config.cluster.dtype,
        "config": job.config.model_dump(mode="json"),
    }


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch (drop path) as a function of (seed, step, rank): no state to checkpoint."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)
