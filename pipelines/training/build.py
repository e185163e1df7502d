"""Builds the parts of a training run from a job's configuration."""

from dataclasses import replace
from functools import partial

import torch

from cluster.batch_layout import BatchLayout
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.shards.local_cache import LocalCache
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from pipelines.config import FinetuneConfig, PretrainConfig
from pipelines.training.anomalies.nonfinite import note_left_out
from pipelines.training.anomalies.spikes import SpikeDetector
from pipelines.training.data.transforms import augmentation, image_size_of, training_view
from pipelines.training.job import TrainJob
from pipelines.training.pace import Pace
from pipelines.training.validation import Validation


def build_engine(
    job: TrainJob,
    device: torch.device,
    batch_layout: BatchLayout,
    pace: Pace,
    spikes: SpikeDetector,
) -> DeepSpeedEngine:
    """The training engine: the task and its optimizer, sharded over the workers."""
    recipe = job.recipe
    torch.set_float32_matmul_precision(recipe.matmul_precision)
    seed_step(job.seed, 0, 0)  # The same initial weights on every worker.
    task = job.build_task(job)
    pace.watch(task)
    return DeepSpeedEngine(
        task,
        parameter_groups(task, group_rule(recipe), task.depths),  # type: ignore[arg-type]
        betas=recipe.betas,
        settings=EngineSettings(
            zero=job.cluster.zero,
            precision=recipe.dtype,
            grad_clip=recipe.grad_clip,
            ema_decay=recipe.ema_decay,
            max_skipped_steps=recipe.max_skipped_steps,
            cuda_graph=job.cluster.cuda_graph,
        ),
        batch_layout=batch_layout,
        device=device,
        identify=lambda batch: batch.indices.tolist(),
        left_out=partial(note_left_out, job),
        watch=spikes.take,
    )


def group_rule(recipe: PretrainConfig | FinetuneConfig) -> GroupRule:
    """The rule that gives each parameter its weight decay and learning rate."""
    rule = GroupRule(weight_decay=recipe.weight_decay, exempt=recipe.decay_exempt)
    if isinstance(recipe, FinetuneConfig):
        rule = replace(rule, layer_decay=recipe.layer_decay, grouping=recipe.layer_decay_groups)
    return rule


def build_loader(job: TrainJob) -> BetonLoader:
    """A loader of the augmented training images, from the node's cache if there is one."""
    recipe, data = job.recipe, job.data
    cache = None
    if data.cache is not None:
        room = None if data.cache_gb is None else round(data.cache_gb * 1e9)
        cache = LocalCache(job.shards, data.cache, room).start()
    return BetonLoader(
        job.shards,
        batch_size=recipe.micro_batch_size,
        view=training_view(image_size_of(recipe, job.model), recipe.augment),
        augment=augmentation(recipe.augment),
        seed=job.seed,
        num_workers=data.num_workers,
        cache=cache,
    )


def build_validation(job: TrainJob) -> Validation:
    """The validation split of the dataset that `job` trains on, at the same image size."""
    return Validation.opened(
        job.shards.with_name("val"),
        image_size_of(job.recipe, job.model),
        job.evaluate,
        job.data.num_workers,
        read_manifest(job.shards).classes,
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch (drop path) as a function of (seed, step, rank): no state to checkpoint."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)
