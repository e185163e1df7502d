"""What the training stages share: launching, resuming, and handing over the weights."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT
from cluster.checkpoint.store import Checkpoint, CheckpointError, latest_good
from convnextv2.data.shards.manifest import read_manifest
from pipelines.config import FinetuneConfig, PretrainConfig
from pipelines.graph import Outputs, StageContext, hash_files
from pipelines.runtime.events import EVENTS_FILE
from pipelines.runtime.session import Session
from pipelines.stages.setup import StageSetup
from pipelines.training.checkpoints import CHECKPOINTS
from pipelines.training.job import TrainJob, Validator
from pipelines.training.loop import train
from pipelines.training.weights.consolidate import consolidate
from pipelines.training.weights.metadata import metadata_of

# Settings that say how a result is computed, not what it is; they are in no stage's key. Nor are
# those of spikes, which may be set when a run that is under way has one; what they have left out is
# in its folder. Of `weights` the key has the content, not the path.
NOT_IN_KEY = {
    "micro_batch_size",
    "activation_checkpointing",
    "checkpoint_every",
    "asynchronous_checkpoints",
    "keep_last",
    "keep_every",
    "keep_best",
    "evaluate_every",
    "max_skipped_steps",
    "spike_factor",
    "spike_window",
    "backend",
    "scratch_baseline",
    "weights",
}
# Of the settings of data, those that decide which samples make up which batch.
ORDER = {"shuffle", "window_blocks"}


def ema_name(weights: str) -> str:
    """The file with the moving average, beside the one with the weights."""
    path = Path(weights)
    return f"{path.stem}-ema{path.suffix}"


def training_job(
    setup: StageSetup,
    context: StageContext,
    recipe: PretrainConfig | FinetuneConfig,
    build_task: Callable[[TrainJob], nn.Module],
    initial_weights: Path | None,
    build_validator: Callable[[TrainJob], Validator] | None = None,
) -> TrainJob:
    """What the workers of a training stage are told: a `recipe` on the images it reads."""
    config = setup.config
    shards = context.inputs[setup.kind.images] / "train"
    manifest = read_manifest(shards)
    return TrainJob(
        model=config.model,
        data=setup.data(),
        recipe=recipe,
        evaluate=config.evaluate,
        cluster=config.cluster,
        seed=config.seed,
        log_every=config.log_every,
        build_task=build_task,
        directory=context.directory.resolve(),
        log=(setup.session.logs / context.stage.name).resolve(),
        shards=shards.resolve(),
        num_classes=len(manifest.classes),
        normalization=manifest.normalization,
        build_validator=build_validator,
        initial_weights=initial_weights,
    )


def run_training(context: StageContext, session: Session, job: TrainJob, weights: str) -> Outputs:
    """Train (or go on), then write the model's fp32 weights to the file `weights`.

    With `ema_decay` their moving average is written beside it.
    """
    job = replace(job, metadata=metadata_of(job).as_entries())
    total = job.total_steps  # Raises before workers start, if the recipe does not fit the images.
    last = _last_good(job)
    with session.attempt(context) as run:
        if last is None or last.step != total:
            session.run_workers(
                train,
                replace(job, provenance=session.provenance_of(run)),
                context,
                run,
                sizes=job.cluster.sizes_for(job.recipe),
            )
            last = _last_good(job)
        if last is None or last.step != total:
            raise CheckpointError(f"no good checkpoint of step {total} in {job.directory}")
        written = {weights: WEIGHT}
        if job.recipe.ema_decay is not None:
            written[ema_name(weights)] = EMA_WEIGHT
        for name, kind in written.items():
            consolidate(last.path, context.directory / name, kind, metadata=job.metadata)
        session.tracker.artifact(run, context.directory / EVENTS_FILE)
    return hash_files(context.directory, *written)


def _last_good(job: TrainJob) -> Checkpoint | None:
    return latest_good(job.directory / CHECKPOINTS).found
