"""Records of steps skipped because of a NaN or an infinity, which `convnextv2 replay` runs again.

    nonfinite/step-120-rank-1.json     in the stage's folder, from every worker that may have
                                       caused it

A file has the sample indices of the worker's micro batches and the settings of the job. Everything
random is a function of (seed, step) or (seed, epoch, sample), so this is enough to repeat the step.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cluster import group
from cluster.engine.outcome import Outcome
from cluster.resilience.journal import WAIT_SECONDS
from convnextv2.tasks import Normalization
from pipelines.config import (
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    IntermediateConfig,
    ModelConfig,
    PretrainConfig,
)
from pipelines.config.section import Section
from pipelines.training.job import TrainJob

FOLDER = "nonfinite"
MOST = 20
"""Files per stage: a run that fails at every step must not fill the disk."""
SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "evaluate": EvaluateConfig,
    "cluster": ClusterConfig,
}
Recipe = type[PretrainConfig] | type[FinetuneConfig]
RECIPES: dict[str, Recipe] = {
    each.__name__: each for each in (PretrainConfig, IntermediateConfig, FinetuneConfig)
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What one worker did in a skipped step.

    Attributes:
        step: The step of the run, counted from 1 as in the event log.
        rank: The rank of the worker.
        epoch: The epoch of its samples.
        loss: The mean over its micro batches, as text ("nan").
        micro_batches: The sample indices of each micro batch.
        settings: The settings of the job, see `settings_of`.
    """

    step: int
    rank: int
    epoch: int
    loss: str
    micro_batches: list[list[int]]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, job: TrainJob, *, step: int, rank: int, epoch: int, loss: float, indices: list[int]
    ) -> "LeftOut":
        size = job.recipe.micro_batch_size
        return cls(
            step=step,
            rank=rank,
            epoch=epoch,
            loss=f"{loss:g}",
            micro_batches=[indices[at : at + size] for at in range(0, len(indices), size)],
            settings=settings_of(job),
        )

    def write(self, stage: Path) -> None:
        """Write to a stage's folder unless it has `MOST` files; a full disk does not stop a run."""
        folder = stage / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            if len(list(folder.iterdir())) < MOST:
                path = folder / f"step-{self.step}-rank-{self.rank}.json"
                path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            log.warning("the samples of step %d are not noted: %s", self.step, error)


def read(path: Path) -> LeftOut:
    """Read the file of a skipped step.

    Raises:
        ValueError: When the file is not such a record.
    """
    try:
        return LeftOut(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of a step that was left out ({error}); those are "
            f"STAGE_FOLDER/{FOLDER}/step-N-rank-R.json"
        ) from error


def settings_of(job: TrainJob) -> dict[str, Any]:
    """The settings that rebuild the same job; paths are relative to the stage's folder."""
    weights = job.initial_weights
    return {
        **{name: getattr(job, name).model_dump(mode="json") for name in SECTIONS},
        "recipe": {type(job.recipe).__name__: job.recipe.model_dump(mode="json")},
        "seed": job.seed,
        "log_every": job.log_every,
        "num_classes": job.num_classes,
        "normalization": list(job.normalization),
        "shards": os.path.relpath(job.shards, job.directory),
        "initial_weights": weights and os.path.relpath(weights, job.directory),
    }


def job_of(left_out: LeftOut, stage: Path, build_task: Callable[[TrainJob], nn.Module]) -> TrainJob:
    """The job of a step, for this machine alone: original shards instead of a cache, eager mode."""
    settings = left_out.settings
    sections: dict[str, Any] = {
        name: section.model_validate(settings[name]) for name, section in SECTIONS.items()
    }
    sections["data"] = sections["data"].model_copy(update={"cache": None})
    ((kind, recipe),) = settings["recipe"].items()
    mean, std, bits = settings["normalization"]
    weights = settings["initial_weights"]
    return TrainJob(
        **sections,
        recipe=RECIPES[kind].model_validate(recipe).model_copy(update={"compile": False}),
        seed=settings["seed"],
        log_every=settings["log_every"],
        build_task=build_task,
        directory=stage,
        log=stage,
        shards=(stage / settings["shards"]).resolve(),
        num_classes=settings["num_classes"],
        normalization=Normalization(tuple(mean), tuple(std), bits),
        initial_weights=None if weights is None else (stage / weights).resolve(),
    )


def note_left_out(job: TrainJob, step: int, outcome: Outcome) -> None:
    """Record what this worker did in a skipped step; collective.

    Workers whose loss is not finite write a record. If all losses are finite, every worker does:
    once the gradients are reduced, nobody can tell whose gradient was not finite.
    """
    fine = bool(outcome.loss.isfinite())
    all_fine = all(group.all_gather(fine))
    if not fine or all_fine:
        left_out = LeftOut.of(
            job,
            step=step,
            rank=group.rank(),
            epoch=(step - 1) // job.order().batches_per_epoch,
            loss=outcome.loss.item(),
            indices=outcome.indices,
        )
        # Storage that hangs must not stop training.
        writing = threading.Thread(target=left_out.write, args=(job.directory,), daemon=True)
        writing.start()
        writing.join(WAIT_SECONDS)
