"""Stages `evaluate` and `evaluate-scratch`: every validation image once, on all workers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster import group
from cluster.engine import worker_device
from convnextv2 import weights
from convnextv2.data.load import BetonLoader
from convnextv2.data.manifest import read_manifest
from convnextv2.tasks.classify import ClassifyTask, Confusion
from pipelines.config import PipelineConfig
from pipelines.files import write_json
from pipelines.graph import Outputs, Place, Stage, hash_files
from pipelines.logs import worker_log
from pipelines.metrics import Spool
from pipelines.session import Session
from pipelines.stages import finetune
from pipelines.stages.finetune import build_classifier
from pipelines.views import evaluation_view

RESULT = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Plain data for the workers."""

    config: PipelineConfig
    directory: Path
    log: Path
    shards: Path
    weights: Path


def evaluate_stage(config: PipelineConfig, session: Session, *, of: str) -> Stage:
    """Evaluate the classifier of the fine-tuning stage `of` on the validation split."""

    def run(place: Place) -> Outputs:
        job = EvaluateJob(
            config=config,
            directory=place.directory.resolve(),
            log=(session.logs / place.stage.name).resolve(),
            shards=(place.inputs["write"] / "val").resolve(),
            weights=(place.inputs[of] / finetune.WEIGHTS).resolve(),
        )
        with session.attempt(place) as run:
            session.run_workers(evaluate, job, place, run)
            session.tracker.artifact(run, place.directory / RESULT)
        return hash_files(place.directory, RESULT)

    return Stage(
        name=of.replace("finetune", "evaluate"),
        run=run,
        settings={
            "model": config.model.model_dump(),
            "evaluate": config.evaluate.model_dump(exclude={"batch_size"}),
        },
        after=("write", of),
        code=(
            "convnextv2.data.decoding",
            "convnextv2.data.views",
            "convnextv2.encoder",
            "convnextv2.kernels",
            "convnextv2.layers",
            "convnextv2.tasks.classify",
            "pipelines.stages.evaluate",
            "pipelines.views",
        ),
    )


@torch.no_grad()
def evaluate(context: dict[str, Any]) -> None:
    """Score this worker's share of the images; rank 0 writes the merged result."""
    job: EvaluateJob = context["job"]
    with worker_log(job.log, group.rank()):
        begin = time.perf_counter()
        manifest = read_manifest(job.shards)
        mine = np.arange(group.rank(), manifest.samples, group.world_size(), dtype=np.uint64)
        task = _load_task(job, len(manifest.classes))
        settings = job.config.evaluate
        loader = BetonLoader(
            job.shards,
            batch_size=settings.batch_size,
            view=evaluation_view(job.config.model.image_size, settings),
            num_workers=job.config.data.num_workers,
        )
        spool = Spool(job.directory, active=group.rank() == 0)
        spool.write("start", 0, total=len(mine), workers=group.world_size())
        confusion, seen = Confusion.empty(len(manifest.classes)), 0
        for batch in loader.batches(mine):
            confusion.update(task.logits(batch.to(worker_device())).cpu(), batch.labels)
            seen += len(batch.labels)
            spool.write("point", seen, images=seen * group.world_size())
        parts = group.gather(confusion)
        if group.rank() == 0:
            for part in parts[1:]:
                confusion.merge(part)
            result = describe(confusion, manifest.classes, time.perf_counter() - begin)
            write_json(job.directory / RESULT, result)
            spool.write("point", seen, top1=confusion.top1, top5=confusion.top5)


def _load_task(job: EvaluateJob, num_classes: int) -> ClassifyTask:
    model = build_classifier(job.config, num_classes)
    weights.load(model, weights.read(job.weights))
    return ClassifyTask(model).eval().to(worker_device())


def describe(confusion: Confusion, classes: Sequence[str], seconds: float) -> dict[str, Any]:
    """The result as JSON; a class without images has no recall."""
    return {
        "images": int(confusion.counts.sum()),
        "top1": confusion.top1,
        "top5": confusion.top5,
        "classes": list(classes),
        "per_class": [None if math.isnan(value) else value for value in confusion.per_class],
        "confusion": confusion.counts.tolist(),
        "seconds": seconds,
    }
