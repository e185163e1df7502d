"""The memory that a recipe needs on a worker, by formula: nothing is built or run."""

from dataclasses import replace
from typing import NamedTuple

from cluster.engine.memory import model_states
from convnextv2.memory import Kernels, Step, activation_bytes, parameter_count
from pipelines.config import ClusterConfig, FinetuneConfig, ModelConfig, PretrainConfig

VALUE_BYTES = {"fp32": 4, "bf16": 2}
NUM_CLASSES = 1000
"""Assumed classes of the head, whose size hardly matters."""


class TrainingMemory(NamedTuple):
    """Bytes on one worker at the peak of a step, without DeepSpeed's communication buckets."""

    activations: float
    parameters: float
    gradients: float
    optimizer: float
    ema: float

    @property
    def total(self) -> float:
        return sum(self)


def training_memory(
    model: ModelConfig,
    recipe: PretrainConfig | FinetuneConfig,
    cluster: ClusterConfig,
    kernels: Kernels = "triton",
) -> TrainingMemory:
    """The memory of a stage on one worker, without what is offloaded to the host.

    Every decoder is counted as the default one, and backends close to `gather` as `gather`.
    """
    step = step_of(model, recipe, kernels)
    whole = trained = parameter_count(step, NUM_CLASSES)
    activations = activation_bytes(step, recipe.micro_batch_size).total
    if isinstance(recipe, FinetuneConfig) and recipe.trainable == "head":
        # No activations are kept for a backward pass, but those of one block exist at a time.
        trained = (step.shape.dims[-1] + 1) * NUM_CLASSES
        again = replace(step, checkpoint_stages=(0, 1, 2, 3))
        activations = activation_bytes(again, recipe.micro_batch_size).passing
    states = model_states(
        trained,
        stage=cluster.zero.stage,
        world_size=cluster.least_workers,
        precision=recipe.dtype,
        ema=recipe.ema_decay is not None,
    )
    optimizer_is_here = cluster.zero.offload_optimizer == "none"
    parameters_are_here = cluster.zero.offload_param == "none"
    return TrainingMemory(
        activations=activations,
        parameters=states.parameters * parameters_are_here + step.value_bytes * (whole - trained),
        gradients=states.gradients,
        optimizer=states.optimizer * optimizer_is_here,
        ema=states.ema * optimizer_is_here,
    )


def step_of(
    model: ModelConfig, recipe: PretrainConfig | FinetuneConfig, kernels: Kernels = "triton"
) -> Step:
    """The forward pass of a recipe, as the input of the formula."""
    step = Step(
        size=model.size,
        image_size=model.image_size,
        kernels=kernels,
        value_bytes=VALUE_BYTES[recipe.dtype],
        checkpoint_stages=recipe.activation_checkpointing,
        patch_size=model.patch_size,
        stem_stride=model.stem_stride,
        in_channels=model.in_channels,
    )
    if isinstance(recipe, FinetuneConfig):
        return replace(step, image_size=recipe.image_size or model.image_size)
    return replace(
        step,
        mask_ratio=recipe.mask_ratio,
        backend="masked-dense" if recipe.backend == "masked-dense" else "gather",
        decoder_dim=recipe.decoder_dim,
        decoder_depth=recipe.decoder_depth,
    )
