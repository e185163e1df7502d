"""Stages `evaluate`, `evaluate-scratch`, `evaluate-linear-probe`: every validation image once."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import group
from cluster.placement import worker_device
from convnextv2 import weights
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.durable import write_json
from convnextv2.tasks.classify import ClassifyTask, Confusion, is_among_best
from convnextv2.tasks.precision import average_precision
from pipelines.config import EvaluateConfig, FinetuneConfig, ModelConfig
from pipelines.graph import Outputs, Stage, StageContext, hash_files
from pipelines.runtime.events import EventLog
from pipelines.runtime.logs import worker_log
from pipelines.stages import finetune
from pipelines.stages.common import ema_name
from pipelines.stages.finetune import ENCODER, build_classifier, recipe_of
from pipelines.stages.setup import StageSetup
from pipelines.training.transforms import image_size_of
from pipelines.training.validation import Validation, mean_of, of_all_workers, share_of

RESULT = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Plain data for the workers.

    Args:
        model: The network's geometry.
        recipe: What the classifier was trained by.
        evaluate: How the images are looked at.
        num_workers: Decoding threads per worker.
        use_gpu: Whether each worker has one.
        directory: The stage's own, on storage that all workers share.
        log: Where what libraries print goes.
        data: The images that are evaluated in val/, those the classes were learnt from in train/.
        files: The weights, and their average where one is kept.
    """

    model: ModelConfig
    recipe: FinetuneConfig
    evaluate: EvaluateConfig
    num_workers: int
    use_gpu: bool
    directory: Path
    log: Path
    data: Path
    files: tuple[Path, ...]


def build(setup: StageSetup) -> Stage:
    """A stage that evaluates a classifier on the validation split."""
    kind, config, session = setup.kind, setup.config, setup.session
    recipe = recipe_of(config, kind.evaluates)
    settings = setup.section(EvaluateConfig)

    def run(context: StageContext) -> Outputs:
        trained = [finetune.WEIGHTS]
        if recipe.ema_decay is not None:
            trained.append(ema_name(finetune.WEIGHTS))
        job = EvaluateJob(
            model=config.model,
            recipe=recipe,
            evaluate=settings,
            num_workers=config.data.num_workers,
            use_gpu=config.cluster.use_gpu,
            directory=context.directory.resolve(),
            log=(session.logs / context.stage.name).resolve(),
            data=context.inputs[kind.images].resolve(),
            files=tuple((context.inputs[kind.evaluates] / file).resolve() for file in trained),
        )
        with session.attempt(context) as run:
            session.run_workers(evaluate, job, context, run)
            session.tracker.artifact(run, context.directory / RESULT)
        return hash_files(context.directory, RESULT)

    return Stage(
        name=kind.name,
        run=run,
        settings={
            "model": config.model.model_dump(include=ENCODER),
            "image_size": image_size_of(recipe, config.model),
            "evaluate": settings.model_dump(exclude={"batch_size"}),
        },
        depends_on=setup.depends_on,
        code=(evaluate,),
    )


def evaluate(job: EvaluateJob) -> None:
    """Score this worker's share of the images; rank 0 writes the merged result.

    The result is that of the weights; their average's, if there is one, is under "ema" in it.
    """
    with worker_log(job.log, group.rank()):
        classes = read_manifest(job.data / "train").classes
        validation = Validation.opened(
            job.data / "val",
            image_size_of(job.recipe, job.model),
            job.evaluate,
            job.num_workers,
            classes,
        )
        device = worker_device(use_gpu=job.use_gpu)
        share = len(share_of(validation.loader.shards.samples))
        event_log = EventLog(job.directory, active=group.rank() == 0)
        event_log.write("start", 0, total=share * len(job.files), workers=group.world_size())
        results = []
        for number, file in enumerate(job.files):
            begin = time.perf_counter()
            task = _load_task(job, file, len(classes)).to(device)
            scored = _scored(task, validation, device, event_log, number * share)
            if validation.multi_label:
                result = describe_several(*of_all_workers(list(scored)), classes)
            else:
                result = describe(_counted(scored, len(classes), device), classes)
            results.append(result | {"seconds": time.perf_counter() - begin})
        if group.rank() == 0:
            result = results[0]
            shown = [key for key in result if key in ("map", "top1", "top5")]
            last = {key: result[key] for key in shown}
            if len(results) == 2:
                result["ema"] = results[1]
                last |= {f"{key}_ema": result["ema"][key] for key in shown}
            write_json(job.directory / RESULT, result)
            event_log.write("point", share * len(job.files), **last)


def _scored(
    task: ClassifyTask, validation: Validation, device: torch.device, event_log: EventLog, seen: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores and labels of this worker's share, on the CPU; `seen` images were scored before."""
    for scores, labels in validation.scored(task, device):
        yield scores.cpu(), labels.cpu()
        seen += len(labels)
        event_log.write("point", seen, images=seen * group.world_size())


def _counted(
    scored: Iterator[tuple[Tensor, Tensor]], classes: int, device: torch.device
) -> Confusion:
    """The counts of all workers, on every worker."""
    confusion = Confusion.empty(classes)
    for scores, labels in scored:
        confusion.update(scores, labels)
    top5 = confusion.counts.new_tensor([confusion.top5_correct])
    totals = torch.cat([confusion.counts.flatten(), top5]).to(device)
    if group.world_size() > 1:
        dist.all_reduce(totals)
    counts, top5 = totals.cpu().split([classes**2, 1])
    return Confusion(counts.view(classes, classes), int(top5))


def _load_task(job: EvaluateJob, file: Path, num_classes: int) -> ClassifyTask:
    model = build_classifier(job.model, job.recipe, num_classes)
    weights.load(model, weights.read(file))
    trained_on = read_manifest(job.data / "train")
    return ClassifyTask(model, normalization=trained_on.normalization).eval()


def describe(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    """The result as JSON; a class without images has no recall."""
    return {
        "images": int(confusion.counts.sum()),
        "top1": confusion.top1,
        "top5": confusion.top5,
        "classes": list(classes),
        "per_class": [None if math.isnan(value) else value for value in confusion.per_class],
        "confusion": confusion.counts.tolist(),
    }


def describe_several(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The result as JSON, from scores and labels (N, C), where images may be of several classes.

    Per class it has average precision. An image is a hit where the best answer, or one of the best
    five, is among its classes; there is no matrix of mistakes.
    """
    precisions = average_precision(scores, labels)
    top1, top5 = (is_among_best(scores, labels, n).double().mean().item() for n in (1, 5))
    return {
        "images": len(scores),
        "map": mean_of(precisions),
        "top1": top1,
        "top5": top5,
        "classes": list(classes),
        "per_class": [None if math.isnan(value) else value for value in precisions.tolist()],
        "confusion": [],
    }
