"""Stages `evaluate`, `evaluate-scratch`, `evaluate-linear-probe`: every validation image once."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import group
from cluster.placement import worker_device
from convnextv2 import weights
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.tasks.classify import ClassCounts, ClassifyTask
from pipelines.config import EvaluateConfig, FinetuneConfig, ModelConfig
from pipelines.graph import Outputs, Stage, StageContext, hash_files
from pipelines.results import Result
from pipelines.results.classification import MOST_CLASSES_OF_MATRIX, multi_label, single_label
from pipelines.runtime.logs import worker_log
from pipelines.stages import finetune
from pipelines.stages.common import ema_name
from pipelines.stages.finetune import ENCODER, build_classifier, recipe_of
from pipelines.stages.scoring import Scoring
from pipelines.stages.setup import StageSetup
from pipelines.training.data.transforms import image_size_of
from pipelines.training.validation import Validation, of_all_workers, worker_samples


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
            files = session.track_result(run, context.directory)
        return hash_files(context.directory, *files)

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
    """Score this worker's images; rank 0 writes the result of all workers.

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
        images = len(worker_samples(validation.loader.shards.samples))
        scoring = Scoring.begin(job.directory, images * len(job.files))
        results = []
        for file in job.files:
            begin = time.perf_counter()
            task = _load_task(job, file, len(classes)).to(device)
            scored = _scored(task, validation, device, scoring)
            result = _result(scored, validation, classes, device)
            seconds = time.perf_counter() - begin
            results.append(result.model_copy(update={"seconds": seconds}))
        ema = results[1] if len(results) == 2 else None
        scoring.publish(results[0].model_copy(update={"ema": ema}))


def _result(
    scored: Iterator[tuple[Tensor, Tensor]],
    validation: Validation,
    classes: Sequence[str],
    device: torch.device,
) -> Result:
    """What the scores and labels of all workers come to."""
    if validation.multi_label:
        return multi_label(*of_all_workers(list(scored)), classes)
    return single_label(counted(scored, len(classes), device), classes)


def _scored(
    task: ClassifyTask, validation: Validation, device: torch.device, scoring: Scoring
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores and labels of this worker's images, on the CPU."""
    for scores, labels in validation.scored(task, device):
        yield scores.cpu(), labels.cpu()
        scoring.scored(len(labels))


def counted(
    scored: Iterator[tuple[Tensor, Tensor]], classes: int, device: torch.device
) -> ClassCounts:
    """The counts of all workers, on every worker."""
    counts = ClassCounts.empty(classes, confusion=classes <= MOST_CLASSES_OF_MATRIX)
    for scores, labels in scored:
        counts.update(scores, labels)
    if group.world_size() > 1:
        for own in counts.tensors:
            total = own.to(device)
            dist.all_reduce(total)
            own.copy_(total)
    return counts


def _load_task(job: EvaluateJob, file: Path, num_classes: int) -> ClassifyTask:
    model = build_classifier(job.model, job.recipe, num_classes)
    weights.load(model, weights.read(file))
    trained_on = read_manifest(job.data / "train")
    return ClassifyTask(model, normalization=trained_on.normalization).eval()
