"""What the training stages share: launching, resuming, and handing over the weights."""

from pathlib import Path

from safetensors.torch import save_file

from cluster.checkpoint import Checkpoint, CheckpointError, latest_good
from cluster.engine import fp32_weights
from pipelines.files import atomically
from pipelines.graph import Outputs, Place, hash_files
from pipelines.metrics import SPOOL
from pipelines.session import Session
from pipelines.train import CHECKPOINTS, TrainJob, train

# Settings that say how a result is computed, not what it is; they are in no stage's key.
NOT_IN_KEY = {
    "micro_batch_size",
    "activation_checkpointing",
    "checkpoint_every",
    "asynchronous_checkpoints",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "evaluate_every",
    "max_skipped_steps",
    "compile",
    "backend",
    "control",
}
# Of the settings of data, those that decide which samples make up which batch.
ORDER = {"order", "window_blocks"}
CODE = (
    "cluster.engine",
    "convnextv2.data.augment",
    "convnextv2.data.decoding",
    "convnextv2.data.load",
    "convnextv2.data.order",
    "convnextv2.data.views",
    "convnextv2.encoder",
    "convnextv2.kernels",
    "convnextv2.layers",
    "convnextv2.randomness",
    "convnextv2.recipe",
    "convnextv2.sizes",
    "pipelines.samples",
    "pipelines.train",
    "pipelines.views",
)
PREFIX = "model."


def run_training(place: Place, session: Session, job: TrainJob, weights: str) -> Outputs:
    """Train (or go on), then write the model's fp32 weights to the file `weights`."""
    last = _last_good(job)
    with session.attempt(place) as run:
        if last is None or last.step != job.total_steps:
            if last is not None:
                check_resumable(job, last)
            session.run_workers(train, job, place, run)
            last = _last_good(job)
        if last is None or last.step != job.total_steps:
            raise CheckpointError(
                f"no good checkpoint of step {job.total_steps} in {job.directory}"
            )
        _export(last.path, place.directory / weights)
        session.tracker.artifact(run, place.directory / SPOOL)
    return hash_files(place.directory, weights)


def check_resumable(job: TrainJob, last: Checkpoint) -> None:
    """Refuse to go on from a checkpoint of other workers before any worker starts.

    Raises:
        CheckpointError: When `last` was written by another number of workers, ZeRO stage or
            precision.
    """
    cluster = job.config.cluster
    now = {
        "world_size": cluster.num_workers,
        "zero_stage": cluster.zero.stage,
        "dtype": cluster.dtype,
    }
    names = {"world_size": "num_workers", "zero_stage": "zero.stage", "dtype": "dtype"}
    changed = [
        f"cluster.{names[key]} was {last.notes[key]}, is {value}"
        for key, value in now.items()
        if last.notes[key] != value
    ]
    if changed:
        raise CheckpointError(
            f"half-done training in {job.directory} cannot go on: {'; '.join(changed)}. Set it "
            f"back, or start the stage over with --rerun {job.directory.parent.name}"
        )


def _last_good(job: TrainJob) -> Checkpoint | None:
    return latest_good(job.directory / CHECKPOINTS).found


def _export(checkpoint: Path, target: Path) -> None:
    """Write the model's own weights (without the task around it) as safetensors, atomically."""
    state = {
        name.removeprefix(PREFIX): value.contiguous()
        for name, value in fp32_weights(checkpoint).items()
        if name.startswith(PREFIX)
    }
    with atomically(target) as partial:
        save_file(state, partial)
