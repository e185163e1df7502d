"""What workers would be told to train, made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.config import FinetuneConfig, PipelineConfig, PretrainConfig, Section
from pipelines.stages import finetune, pretrain
from pipelines.training.job import TrainJob


def made_up_job(
    config: PipelineConfig, recipe: Section | None, folder: Path, **changes: Any
) -> TrainJob:
    """A job in `folder` on the shards in `folder`/train, of three classes, unless `changes` say
    otherwise.
    """
    assert isinstance(recipe, PretrainConfig | FinetuneConfig)
    stage = pretrain if isinstance(recipe, PretrainConfig) else finetune
    job = TrainJob(
        model=config.model,
        data=config.data,
        recipe=recipe,
        evaluate=config.evaluate,
        cluster=config.cluster,
        seed=config.seed,
        log_every=config.log_every,
        build_task=stage.build_task,
        directory=folder,
        log=folder,
        shards=folder / "train",
        num_classes=3,
    )
    return replace(job, **changes)
