"""What a worker needs to know to train: plain data that travels to any node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from cluster.checkpoint.retention import KeepPolicy
from convnextv2.data.order.global_order import GlobalOrder
from convnextv2.recipe.duration import Duration
from convnextv2.recipe.schedule import WarmupCosine, scaled_lr
from convnextv2.tasks import IMAGENET, Normalization, TaskOutput
from convnextv2.tasks.batch import Batch
from pipelines.config import (
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
    TrainConfig,
)
from pipelines.training.data.samples import training_order


class Validator(Protocol):
    """Scores the validation split; `pipelines.training.validation` has that of classifiers."""

    def run(self, forward: Callable[[Batch], TaskOutput], device: torch.device) -> dict[str, float]:
        """The metrics that the recipe's `validation_metrics` name, as `val_<name>`: of the whole
        split, the same on every worker. `forward` is the task as all workers call it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training stage.

    Args:
        model: The network's geometry.
        data: How the training images are read.
        recipe: What is trained, and how.
        evaluate: How validation images are resized and cropped.
        cluster: Settings of the workers: ZeRO, device.
        seed: From which all random numbers are derived.
        log_every: Steps between points on the curves.
        build_task: Makes the module to train.
        directory: The stage's folder, on storage that all workers share.
        log: Worker N writes what libraries print to `<log>.rank<N>.log`.
        shards: The training images.
        num_classes: Number of classes of their labels.
        build_validator: Makes the validator, for recipes that evaluate during training.
        normalization: Of the training images, by which those for validation are normalised, too.
        initial_weights: What training starts from, else random weights.
        metadata: What the weights say about themselves, as entries of a safetensors file.
        provenance: For checkpoints: the configuration, versions of code and libraries, and the
            tracking runs.
    """

    model: ModelConfig
    data: DataConfig
    recipe: PretrainConfig | FinetuneConfig
    evaluate: EvaluateConfig
    cluster: ClusterConfig
    seed: int
    log_every: int
    build_task: Callable[["TrainJob"], nn.Module]
    directory: Path
    log: Path
    shards: Path
    num_classes: int
    build_validator: Callable[["TrainJob"], Validator] | None = None
    normalization: Normalization = IMAGENET
    initial_weights: Path | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)

    def order(self) -> GlobalOrder:
        return training_order(self.shards, self.recipe, self.data, self.seed)

    @property
    def total_steps(self) -> int:
        return Plan.of(self.recipe, self.order()).total_steps

    def keep_policy(self, plan: "Plan") -> KeepPolicy:
        """Which checkpoints are kept; the metric says which of two values is better."""
        recipe, best = self.recipe, self.recipe.keep_best
        metric = None if best is None else recipe.measured(self.data)[best]
        return KeepPolicy(
            last=recipe.keep_last,
            every=plan.keep_every or None,
            best=best,
            smaller_is_better=metric is not None and metric.direction == "lower",
            reach=0 if recipe.spike_factor is None else plan.spike_window,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe's durations in optimizer steps; 0 means never, and of `checkpoint_every` auto."""

    total_steps: int
    warmup_steps: int
    spike_window: int
    checkpoint_every: int
    evaluate_every: int
    keep_every: int
    schedule: WarmupCosine

    @classmethod
    def of(cls, recipe: TrainConfig, order: GlobalOrder) -> "Plan":
        """Convert a recipe's durations.

        Raises:
            ValueError: When the warm-up is longer than the training.
        """

        def steps(duration: Duration | None, total: int | None) -> int:
            if duration is None:
                return 0
            return duration.steps(
                batches_per_epoch=order.batches_per_epoch,
                global_batch_size=recipe.global_batch_size,
                total_steps=total,
            )

        total = steps(recipe.duration, None)
        warmup = steps(recipe.warmup, total)
        every = recipe.checkpoint_every
        return cls(
            total_steps=total,
            warmup_steps=warmup,
            spike_window=steps(recipe.spike_window, total),
            checkpoint_every=0 if every == "auto" else steps(every, total),
            evaluate_every=steps(recipe.evaluate_every, total),
            keep_every=steps(recipe.keep_every, total),
            schedule=WarmupCosine(
                peak=scaled_lr(recipe.base_lr, recipe.global_batch_size),
                floor=recipe.min_lr,
                total_steps=total,
                warmup_steps=warmup,
            ),
        )
