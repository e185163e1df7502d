"""Stage `knn`: nearest neighbours of the pretrained encoder's features, without any training.

Every worker keeps the features of its own part of the training images. Each worker in turn
broadcasts the features of its validation images, some at a time; all workers answer with the
nearest of their own training images, and the worker that asked merges the answers.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import group
from cluster.placement import worker_device
from cluster.workers import current
from convnextv2.analysis.knn import merged, nearest, numbers_of, pooled, similarities, votes
from convnextv2.analysis.models import read_encoder
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks import Normalize
from convnextv2.tasks.batch import on_device
from convnextv2.tasks.topk import num_correct
from pipelines.config import EvaluateConfig, KnnConfig
from pipelines.graph import Outputs, Stage, StageContext, hash_files
from pipelines.results import Result
from pipelines.results.classification import accuracies
from pipelines.runtime.logs import worker_log
from pipelines.stages import pretrain
from pipelines.stages.scoring import Scoring
from pipelines.stages.setup import StageSetup
from pipelines.training.data.transforms import evaluation_view
from pipelines.training.validation import worker_samples
from pipelines.training.weights.given import Given

QUERIES = 1024
"""Images whose neighbours are looked for at a time: bounds memory, changes nothing."""


@dataclass(frozen=True, kw_only=True)
class KnnJob:
    """Plain data for the workers.

    Args:
        settings: Of the vote.
        image_size: Side in pixels.
        evaluate: How the images are looked at.
        num_workers: Decoding threads per worker.
        use_gpu: Whether each worker has one.
        directory: The stage's own, on storage that all workers share.
        log: Where what libraries print goes.
        data: The images that vote in train/, those that are classified in val/.
        weights: The encoder's.
    """

    settings: KnnConfig
    image_size: int
    evaluate: EvaluateConfig
    num_workers: int
    use_gpu: bool
    directory: Path
    log: Path
    data: Path
    weights: Path


def build(setup: StageSetup) -> Stage:
    """Classify the validation images by their neighbours among the training images."""
    config, session, settings = setup.config, setup.session, setup.section(KnnConfig)
    given = Given.of(settings.weights)

    def run(context: StageContext) -> Outputs:
        job = KnnJob(
            settings=settings,
            image_size=config.model.image_size,
            evaluate=config.evaluate,
            num_workers=config.data.num_workers,
            use_gpu=config.cluster.use_gpu,
            directory=context.directory.resolve(),
            log=(session.logs / context.stage.name).resolve(),
            data=context.inputs[setup.kind.images].resolve(),
            weights=given.copy(context.directory)
            or (context.inputs["pretrain"] / pretrain.WEIGHTS).resolve(),
        )
        with session.attempt(context) as run:
            session.run_workers(classify, job, context, run)
            files = session.track_result(run, context.directory)
        return hash_files(context.directory, *files)

    return Stage(
        name=setup.kind.name,
        run=run,
        settings={
            "image_size": config.model.image_size,
            "evaluate": config.evaluate.model_dump(exclude={"batch_size"}),
            setup.kind.section: settings.model_dump(exclude={"batch_size", "weights"}),
            **given.settings,
        },
        depends_on=setup.depends_on,
        code=(classify, *given.code),
    )


def classify(job: KnnJob) -> None:
    """Score this worker's images; rank 0 writes the result of all workers."""
    with worker_log(job.log, group.rank()):
        begin = time.perf_counter()
        device = worker_device(use_gpu=job.use_gpu)
        encoder = read_encoder(job.weights).to(device)
        splits = {split: read_manifest(job.data / split) for split in ("train", "val")}
        total = sum(len(worker_samples(manifest.samples)) for manifest in splits.values())
        scoring = Scoring.begin(job.directory, total)
        bank, numbers = features(job, "train", encoder, scoring)
        queries, own = features(job, "val", encoder, scoring)

        classes = splits["train"].classes
        voters = open_shards(job.data / "train", splits["train"])
        truth = torch.from_numpy(open_shards(job.data / "val", splits["val"], classes).labels())
        counts = torch.zeros(3, dtype=torch.int64)  # Images, how many are right in top-1 and top-5.
        for rows, neighbours in answered(queries, bank, numbers, job.settings.k):
            names = numbers_of(neighbours).cpu().numpy().astype("uint64")
            labels = torch.from_numpy(voters.labels(names.ravel())).view(neighbours.shape)
            scores = votes(
                similarities(neighbours).cpu(),
                labels,
                job.settings.temperature,
                len(classes),
            )
            wanted = truth[own[rows].cpu()]
            # A class without a vote is no answer.
            counts += torch.tensor([len(wanted), *num_correct(scores, wanted, (1, 5), above=0)])
        images, top1, top5 = torch.stack(group.all_gather(counts)).sum(dim=0).tolist()
        result = Result(
            metrics=accuracies(top1, top5, images),
            facts={
                "bank": splits["train"].samples,
                "k": job.settings.k,
                "temperature": job.settings.temperature,
            },
            seconds=time.perf_counter() - begin,
        )
        scoring.publish(result)


@torch.no_grad()
def features(
    job: KnnJob, split: str, encoder: ConvNeXtV2, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Features (N, C) of this worker's images of a split, and the images' numbers (N)."""
    loader = BetonLoader(
        job.data / split,
        batch_size=job.settings.batch_size,
        view=evaluation_view(job.image_size, job.evaluate),
        num_workers=job.num_workers,
    )
    samples = worker_samples(loader.shards.samples)
    device = worker_device(use_gpu=job.use_gpu)
    normalize = Normalize(read_manifest(job.data / "train").normalization).to(device)
    found = torch.empty(len(samples), encoder.dims[-1], device=device)
    filled = 0
    for batch in on_device(loader.batches(samples), device):
        images = normalize(batch.images, torch.float32)
        found[filled : filled + len(images)] = pooled(encoder, images)
        filled += len(images)
        scoring.scored(len(images))
    return found, torch.from_numpy(samples.astype("int64")).to(device)


def answered(queries: Tensor, bank: Tensor, numbers: Tensor, k: int) -> list[tuple[slice, Tensor]]:
    """Neighbours (Q, k) of this worker's queries (N, C) in the banks of all workers, by rows."""
    answers = []
    for owner, count in enumerate(group.all_gather(len(queries))):
        for start in range(0, count, QUERIES):
            rows = slice(start, min(start + QUERIES, count))
            asked = queries.new_empty(rows.stop - start, queries.shape[1])
            if owner == group.rank():
                asked.copy_(queries[rows])
            lists = _lists(asked, owner, bank, numbers, k)
            if owner == group.rank():
                answers.append((rows, merged(lists, k)))
            current.worker().beacon.passed()
    return answers


def _lists(asked: Tensor, owner: int, bank: Tensor, numbers: Tensor, k: int) -> list[Tensor]:
    """Every worker's neighbours of `owner`'s queries, on `owner`; nothing elsewhere."""
    if group.world_size() == 1:
        return [nearest(asked, bank, numbers, k)]
    dist.broadcast(asked, src=owner)
    mine = nearest(asked, bank, numbers, k)
    lists = [torch.empty_like(mine) for _ in range(group.world_size())]
    dist.gather(mine, lists if owner == group.rank() else None, dst=owner)
    return lists
