"""Stages that train a classifier: `intermediate`, `finetune`, `finetune-scratch`, `linear-probe`.

They differ in their recipe, in their images, and in what training starts from.
"""

from pathlib import Path

from torch import nn

from convnextv2 import weights
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks.classify import ClassifyTask
from convnextv2.weights.starting import Start, start_of_classifier
from convnextv2.weights.state import HEAD_ONLY
from pipelines.config import FinetuneConfig, ModelConfig, PipelineConfig
from pipelines.graph import Outputs, Stage, StageContext
from pipelines.graph.kinds import KINDS
from pipelines.stages import pretrain
from pipelines.stages.common import (
    NOT_IN_KEY,
    ORDER,
    ema_name,
    run_training,
    training_job,
)
from pipelines.stages.setup import StageSetup
from pipelines.training.build import build_validation
from pipelines.training.data.transforms import image_size_of
from pipelines.training.job import TrainJob
from pipelines.training.weights.given import Given

WEIGHTS = "model.safetensors"
ENCODER = {"size", "stem_stride", "in_channels"}
"""Settings of the model that make its encoder."""


def build(setup: StageSetup) -> Stage:
    """A stage whose outputs are the weights and, with `ema_decay`, their average."""
    config, recipe = setup.config, setup.section(FinetuneConfig)
    given = Given.of(None if setup.kind.baseline_of else recipe.weights)

    def run(context: StageContext) -> Outputs:
        initial = given.copy(context.directory) or initial_weights(config, context)
        job = training_job(setup, context, recipe, build_task, initial, build_validation)
        if job.initial_weights is not None:
            start = start_of(job, weights.inspect(job.initial_weights))
            setup.session.screen.note(
                f"from {recipe.weights or job.initial_weights}: {start.description}"
            )
        return run_training(context, setup.session, job, WEIGHTS)

    return Stage(
        name=setup.kind.name,
        run=run,
        settings={
            "seed": config.seed,
            "data": setup.data().model_dump(include=ORDER),
            "model": config.model.model_dump(include=ENCODER),
            "image_size": image_size_of(recipe, config.model),
            setup.kind.section: recipe.model_dump(exclude={*NOT_IN_KEY, "data", "image_size"}),
            **given.settings,
        },
        depends_on=setup.depends_on,
        code=(run_training, build_task, *given.code),
    )


def recipe_of(config: PipelineConfig, name: str) -> FinetuneConfig:
    """The recipe of the stage `name`, which the configuration has."""
    recipe = KINDS[name].settings(config)
    assert isinstance(recipe, FinetuneConfig)
    return recipe


def initial_weights(config: PipelineConfig, context: StageContext) -> Path | None:
    """The file that training starts from: of the intermediate step the average, if it kept one.

    The paper's 22K step keeps none. Where one is kept, it is meant to be used.
    """
    if "pretrain" in context.inputs:
        return (context.inputs["pretrain"] / pretrain.WEIGHTS).resolve()
    if "intermediate" not in context.inputs:
        return None
    averaged = recipe_of(config, "intermediate").ema_decay is not None
    name = ema_name(WEIGHTS) if averaged else WEIGHTS
    return (context.inputs["intermediate"] / name).resolve()


def build_classifier(model: ModelConfig, recipe: FinetuneConfig, num_classes: int) -> ConvNeXtV2:
    """The classifier a recipe trains."""
    return ConvNeXtV2.from_size(
        model.size,
        num_classes=num_classes,
        stem_stride=model.stem_stride,
        in_channels=model.in_channels,
        drop_path=recipe.drop_path,
        head_init_scale=recipe.head_init_scale,
        checkpoint_stages=recipe.activation_checkpointing,
    )


def build_task(job: TrainJob) -> nn.Module:
    """The classifier, on what `start_of` takes over."""
    recipe = job.recipe
    assert isinstance(recipe, FinetuneConfig)
    model = build_classifier(job.model, recipe, job.num_classes)
    if job.initial_weights is not None:
        start = start_of(job, weights.inspect(job.initial_weights))
        weights.load(model, start.state, may_miss=HEAD_ONLY)
    if recipe.compile:
        model.compile()
    return ClassifyTask(
        model,
        label_smoothing=recipe.label_smoothing,
        trainable=recipe.trainable,
        normalization=job.normalization,
    )


def start_of(job: TrainJob, found: weights.Inspection) -> Start:
    """What is taken over: of a head its rows, if its classes are those of the images by name."""
    assert isinstance(job.recipe, FinetuneConfig)
    classes = read_manifest(job.shards).classes if found.metadata.classes else ()
    return start_of_classifier(found, classes, new_head=job.recipe.trainable == "head")
