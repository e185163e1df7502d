"""Stages `finetune` and `finetune-scratch`: supervised training, pretrained and as the control."""

from torch import nn

from convnextv2 import weights
from convnextv2.data.collection import DataError
from convnextv2.data.manifest import read_manifest
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks.classify import ClassifyTask
from pipelines.config import FinetuneConfig, PipelineConfig
from pipelines.graph import Outputs, Place, Stage
from pipelines.session import Session
from pipelines.stages import pretrain
from pipelines.stages.training import CODE, NOT_IN_KEY, ORDER, run_training
from pipelines.train import TrainJob

WEIGHTS = "model.safetensors"
SCRATCH = "finetune-scratch"


def finetune_stage(config: PipelineConfig, session: Session, *, from_scratch: bool) -> Stage:
    """Train a classifier; the two variants differ in nothing but the initial encoder."""
    recipe = config.finetune
    assert recipe is not None

    def run(place: Place) -> Outputs:
        shards = place.inputs["write"] / "train"
        if not read_manifest(shards).classes:
            raise DataError(
                f"{shards} has no labels, which fine-tuning needs; convnextv2 pretrain works, or "
                "give --data with classes"
            )
        initial = None
        if not from_scratch:
            initial = (place.inputs["pretrain"] / pretrain.WEIGHTS).resolve()
        job = TrainJob(
            config=config,
            recipe=recipe,
            build_task=build_task,
            directory=place.directory.resolve(),
            log=(session.logs / place.stage.name).resolve(),
            shards=shards.resolve(),
            num_classes=len(read_manifest(shards).classes),
            initial_weights=initial,
        )
        return run_training(place, session, job, WEIGHTS)

    return Stage(
        name=SCRATCH if from_scratch else "finetune",
        run=run,
        settings={
            "seed": config.seed,
            "data": config.data.model_dump(include=ORDER),
            "dtype": config.cluster.dtype,
            "model": config.model.model_dump(),
            "finetune": recipe.model_dump(exclude=NOT_IN_KEY),
        },
        after=("write",) if from_scratch else ("write", "pretrain"),
        code=(*CODE, "convnextv2.tasks.classify", "convnextv2.weights"),
    )


def build_classifier(config: PipelineConfig, num_classes: int) -> ConvNeXtV2:
    """The classifier a configuration describes."""
    recipe = config.finetune
    assert recipe is not None
    return ConvNeXtV2.from_size(
        config.model.size,
        num_classes=num_classes,
        stem_stride=config.model.stem_stride,
        drop_path=recipe.drop_path,
        head_init_scale=recipe.head_init_scale,
        checkpoint_stages=recipe.activation_checkpointing,
    )


def build_task(job: TrainJob) -> nn.Module:
    model = build_classifier(job.config, job.num_classes)
    if job.initial_weights is not None:
        encoder = weights.encoder_of(weights.read(job.initial_weights))
        weights.load(model, encoder, may_miss=("norm.", "head."))
    assert isinstance(job.recipe, FinetuneConfig)
    return ClassifyTask(model, label_smoothing=job.recipe.label_smoothing)
