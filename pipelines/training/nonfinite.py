"""Steps that were left out for a NaN or an infinity, as files that `convnextv2 replay` runs again.

    nonfinite/step-120-rank-1.json     in the stage's folder, by every worker that may be to blame

A file names the samples of the worker's micro batches and holds the job's settings. Everything
random is a function of (seed, step) or (seed, epoch, sample), so that is all there is to say.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cluster import group
from cluster.engine.outcome import Outcome
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
"""Files of a stage: the first ones tell, and a run that fails at every step must not fill disks."""
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
    """What one worker did in a step that was left out.

    Attributes:
        step: Of the run, from 1, as the event log counts.
        rank: Of the worker.
        epoch: Of its samples.
        loss: Mean over its micro batches, in words ("nan").
        micro_batches: Sample indices of each.
        settings: The job's, see `settings_of`.
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
        """Into a stage's folder, unless there are enough; a full disk does not stop training."""
        folder = stage / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            if len(list(folder.iterdir())) < MOST:
                path = folder / f"step-{self.step}-rank-{self.rank}.json"
                path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            log.warning("the samples of step %d are not noted: %s", self.step, error)


def read(path: Path) -> LeftOut:
    """The file of a step.

    Raises:
        ValueError: When it is none.
    """
    try:
        return LeftOut(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of a step that was left out ({error}); those are "
            f"STAGE_FOLDER/{FOLDER}/step-N-rank-R.json"
        ) from error


def settings_of(job: TrainJob) -> dict[str, Any]:
    """What makes the same job again; paths are relative to the stage's folder."""
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
    """The job of a step, on this machine alone: it reads the original shards, and eagerly."""
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
    """Write down what this worker did in a step that was left out; all workers call.

    Those whose loss is not finite do. Of gradients nobody knows whose they were, once they are
    reduced: if all losses are fine, every worker does.
    """
    fine = bool(outcome.loss.isfinite())
    all_fine = all(group.all_gather(fine))
    if not fine or all_fine:
        LeftOut.of(
            job,
            step=step,
            rank=group.rank(),
            epoch=(step - 1) // job.order().batches_per_epoch,
            loss=outcome.loss.item(),
            indices=outcome.indices,
        ).write(job.directory)
