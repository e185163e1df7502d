"""Stage `pretrain`: FCMAE on the unlabelled training images."""

from torch import nn

from convnextv2 import weights
from convnextv2.fcmae import FCMAE
from convnextv2.tasks.pretrain import PretrainTask
from convnextv2.weights.starting import Start, start_of_autoencoder
from convnextv2.weights.state import FCMAE_ONLY
from pipelines.config import ModelConfig, PretrainConfig
from pipelines.graph import Outputs, Stage, StageContext
from pipelines.stages.common import NOT_IN_KEY, ORDER, run_training, training_job
from pipelines.stages.setup import StageSetup
from pipelines.training.job import TrainJob
from pipelines.training.weights.given import Given

WEIGHTS = "fcmae.safetensors"


def build(setup: StageSetup) -> Stage:
    """FCMAE pretraining; its output is the whole autoencoder."""
    config, recipe = setup.config, setup.section(PretrainConfig)
    given = Given.of(recipe.weights)

    def run(context: StageContext) -> Outputs:
        job = training_job(setup, context, recipe, build_task, given.copy(context.directory))
        if job.initial_weights is not None:
            start = start_of(job, weights.inspect(job.initial_weights))
            setup.session.screen.note(f"from {recipe.weights}: {start.description}")
        return run_training(context, setup.session, job, WEIGHTS)

    return Stage(
        name=setup.kind.name,
        run=run,
        settings={
            "seed": config.seed,
            "data": setup.data().model_dump(include=ORDER),
            "model": config.model.model_dump(),
            setup.kind.section: recipe.model_dump(exclude=NOT_IN_KEY),
            **given.settings,
        },
        depends_on=setup.depends_on,
        code=(run_training, build_task, *given.code),
    )


def build_fcmae(model: ModelConfig, recipe: PretrainConfig) -> FCMAE:
    """The autoencoder a recipe trains."""
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
    """The autoencoder, on what `start_of` takes over."""
    assert isinstance(job.recipe, PretrainConfig)
    model = build_fcmae(job.model, job.recipe)
    if job.initial_weights is not None:
        start = start_of(job, weights.inspect(job.initial_weights))
        weights.load(model, start.state, may_miss=FCMAE_ONLY)
    if job.recipe.compile:
        model.encoder.compile()
    return PretrainTask(model, seed=job.seed, normalization=job.normalization)


def start_of(job: TrainJob, found: weights.Inspection) -> Start:
    """What is taken over: the encoder, and a decoder that is like this one."""
    recipe = job.recipe
    assert isinstance(recipe, PretrainConfig)
    return start_of_autoencoder(found, (recipe.decoder, recipe.decoder_dim, recipe.decoder_depth))
