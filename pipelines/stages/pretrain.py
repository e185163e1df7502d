"""Stage `pretrain`: FCMAE on the unlabelled training images."""

from torch import nn

from convnextv2 import weights
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.fcmae import FCMAE
from convnextv2.tasks.pretrain import PretrainTask
from convnextv2.weights.starting import Start, start_of_autoencoder
from convnextv2.weights.state import FCMAE_ONLY
from pipelines.config import PipelineConfig, PretrainConfig
from pipelines.graph import Outputs, Stage, StageContext
from pipelines.graph.outline import outline
from pipelines.runtime.session import Session
from pipelines.stages.common import NOT_IN_KEY, ORDER, run_training
from pipelines.training.job import TrainJob
from pipelines.weights.given import Given

WEIGHTS = "fcmae.safetensors"


def pretrain_stage(config: PipelineConfig, session: Session) -> Stage:
    """FCMAE pretraining; its output is the whole autoencoder."""
    recipe = config.pretrain
    assert recipe is not None
    given = Given.of(recipe.weights)

    def run(context: StageContext) -> Outputs:
        shards = context.inputs["write"] / "train"
        manifest = read_manifest(shards)
        job = TrainJob(
            config=config,
            recipe=recipe,
            build_task=build_task,
            directory=context.directory.resolve(),
            log=(session.logs / context.stage.name).resolve(),
            shards=shards.resolve(),
            num_classes=len(manifest.classes),
            normalization=manifest.normalization,
            initial_weights=given.copy(context.directory),
        )
        if job.initial_weights is not None:
            start = start_of(job, weights.inspect(job.initial_weights))
            session.screen.note(f"from {recipe.weights}: {start.description}")
        return run_training(context, session, job, WEIGHTS)

    return Stage(
        name="pretrain",
        run=run,
        settings={
            "seed": config.seed,
            "data": config.data.model_dump(include=ORDER),
            "model": config.model.model_dump(),
            "pretrain": recipe.model_dump(exclude=NOT_IN_KEY),
            **given.settings,
        },
        depends_on=outline(config)["pretrain"],
        code=(run_training, build_task, *given.code),
    )


def build_fcmae(config: PipelineConfig) -> FCMAE:
    """The autoencoder a configuration describes."""
    recipe, model = config.pretrain, config.model
    assert recipe is not None
    return FCMAE.from_size(
        model.size,
        stem_stride=model.stem_stride,
        in_channels=model.in_channels,
        image_size=model.image_size,
        patch_size=model.patch_size,
        mask_ratio=recipe.mask_ratio,
        decoder=recipe.decoder,
        decoder_dim=recipe.decoder_dim,
        decoder_depth=recipe.decoder_depth,
        norm_pix_loss=recipe.norm_pix_loss,
        backend=recipe.backend,
        grn_scope=recipe.grn_scope,
        checkpoint_stages=recipe.activation_checkpointing,
    )


def build_task(job: TrainJob) -> nn.Module:
    model = build_fcmae(job.config)
    if job.initial_weights is not None:
        start = start_of(job, weights.inspect(job.initial_weights))
        weights.load(model, start.state, may_miss=FCMAE_ONLY)
    if job.recipe.compile:
        model.encoder.compile()
    return PretrainTask(model, seed=job.config.seed, normalization=job.normalization)


def start_of(job: TrainJob, found: weights.Inspection) -> Start:
    """What is taken over: the encoder, and a decoder that is like this one."""
    recipe = job.recipe
    assert isinstance(recipe, PretrainConfig)
    return start_of_autoencoder(found, (recipe.decoder, recipe.decoder_dim, recipe.decoder_depth))
