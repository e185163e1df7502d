"""The one evaluation loop: every image of the validation split once, on all workers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster import group
from cluster.workers import current
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.shards.mapped import Indices
from convnextv2.tasks import TaskOutput
from convnextv2.tasks.average_precision import average_precision, mean_of
from convnextv2.tasks.batch import Batch, on_device
from convnextv2.tasks.classify import cross_entropies
from convnextv2.tasks.topk import num_correct
from pipelines.config import EvaluateConfig
from pipelines.training.data.transforms import evaluation_view

Forward = Callable[[Batch], TaskOutput]


@dataclass
class Validation:
    """The validation split, opened once and scored as often as needed."""

    loader: BetonLoader

    @classmethod
    def opened(
        cls,
        shards: Path,
        image_size: int,
        settings: EvaluateConfig,
        num_workers: int,
        classes: Sequence[str],
    ) -> "Validation":
        """Open a folder of shards to evaluate a classifier of `classes`.

        Raises:
            DataError: When the folder is not complete, or has a class that is not among them.
        """
        return cls(
            BetonLoader(
                shards,
                batch_size=settings.batch_size,
                view=evaluation_view(image_size, settings),
                num_workers=num_workers,
                classes=classes,
            )
        )

    def run(self, forward: Forward, device: torch.device) -> dict[str, float]:
        """Accuracies and the mean cross entropy over the whole split, the same on every worker.

        `FinetuneConfig.validation_metrics` names them; where images may be of several classes,
        mAP is one. `forward` is the task as all workers call it, in evaluation mode: its output
        has scores.
        """
        # Images, how many are right in top-1 and top-5, loss.
        totals = torch.zeros(4, dtype=torch.float64, device=device)
        kept = []
        for scores, labels in self.scored(forward, device):
            totals[0] += len(labels)
            totals[1:3] += num_correct(scores, labels, (1, 5))
            totals[3] += cross_entropies(scores, labels).sum()
            if self.multi_label:
                kept.append((scores.cpu(), labels.cpu()))
        if group.world_size() > 1:
            dist.all_reduce(totals)
        top1, top5, loss = (totals[1:] / totals[0]).tolist()
        values = {"val_top1": top1, "val_top5": top5, "val_loss": loss}
        if self.multi_label:
            values["val_map"] = mean_of(average_precision(*of_all_workers(kept)))
        return values

    @property
    def multi_label(self) -> bool:
        """Whether images may be of several classes."""
        return self.loader.shards.label_sets is not None

    def scored(self, forward: Forward, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores (B, classes) and labels (B) of this worker's samples, batch by batch.

        Every worker calls `forward` equally often, since a forward pass is a collective operation
        in ZeRO stage 3: a worker with fewer batches repeats an image and drops its scores.
        """
        size = self.loader.batch_size
        mine = worker_samples(self.loader.shards.samples)
        longest = -(-self.loader.shards.samples // group.world_size())
        own = -(-len(mine) // size)
        spare = [np.zeros(1, np.uint64)] * (-(-longest // size) - own)
        with closing(on_device(self.loader.batches([mine, *spare]), device)) as batches:
            for number, batch in enumerate(batches):
                with torch.no_grad():
                    scores = forward(batch).scores
                assert scores is not None, "only tasks that classify can be evaluated"
                current.worker().beacon.passed()
                if number < own:
                    yield scores, batch.labels


def of_all_workers(kept: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Scores and labels (N, C) of the batches of all workers, on every worker."""
    batches = [batch for worker in group.all_gather(kept) for batch in worker]
    scores, labels = zip(*batches, strict=True)
    return torch.cat(scores), torch.cat(labels)


def worker_samples(samples: int) -> Indices:
    """Numbers of this worker's samples, a contiguous range; of all workers, every sample once."""
    begin, end = (
        samples * number // group.world_size() for number in (group.rank(), group.rank() + 1)
    )
    return np.arange(begin, end, dtype=np.uint64)
