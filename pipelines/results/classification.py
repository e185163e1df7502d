"""The result of a classifier: accuracies or mAP, each class by itself, and what is mistaken."""

import math
from collections.abc import Sequence

from torch import Tensor

from convnextv2.tasks.average_precision import average_precision, mean_of
from convnextv2.tasks.classify import ClassCounts
from convnextv2.tasks.topk import num_correct
from pipelines.results.known import MAP, TOP1, TOP5
from pipelines.results.metrics import FRACTION, Metric, proportion
from pipelines.results.result import Column, Result, Table

PER_CLASS, CONFUSION = "per_class", "confusion"
"""Names of the tables."""
MOST_CLASSES_OF_MATRIX = 1000
"""Beyond them no confusion matrix is counted: ImageNet-22K's has 477 million numbers."""


def accuracies(num_top1: float, num_top5: float, images: int) -> tuple[Metric, Metric]:
    """Of `images`, the shares with the label as the best answer, and among the best five."""
    return proportion(TOP1, num_top1, images), proportion(TOP5, num_top5, images)


def single_label(counts: ClassCounts, classes: Sequence[str]) -> Result:
    """Where an image is of one class; a class without images has no recall."""
    recalls = _of_each_class(
        "recall", "Share of each class that is recognised", classes, counts.per_class
    )
    images, num_top1 = int(counts.images.sum()), int(counts.correct.sum())
    metrics = accuracies(num_top1, int(counts.top5_correct), images)
    if counts.confusion is None:
        return Result(
            metrics=metrics,
            tables=(recalls,),
            note=f"There is no confusion matrix of {len(classes):,} classes: it is kept up to "
            f"{MOST_CLASSES_OF_MATRIX:,}.",
        )
    return Result(metrics=metrics, tables=(recalls, _matrix(counts.confusion, classes)))


def _matrix(counts: Tensor, classes: Sequence[str]) -> Table:
    """From images by (true, predicted) class, (C, C)."""
    rows = zip(classes, counts.tolist(), strict=True)
    return Table(
        name=CONFUSION,
        title="Mistaken for one another",
        note="Rows are the true class, columns the answer; numbers are test images.",
        look="matrix",
        columns=(
            Column(title="true class"),
            *(Column(title=name, unit="images") for name in classes),
        ),
        rows=tuple((name, *row) for name, row in rows),
    )


def multi_label(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> Result:
    """Where images may be of several classes, from scores and labels (N, C).

    An answer is right if it is one of the image's classes, so there is no matrix of mistakes.
    """
    precisions = average_precision(scores, labels)
    num_top1, num_top5 = num_correct(scores, labels, (1, 5)).tolist()
    return Result(
        metrics=(
            Metric.of(MAP, mean_of(precisions), images=len(scores)),
            *accuracies(num_top1, num_top5, len(scores)),
        ),
        tables=(
            _of_each_class(
                "average precision", "Average precision of each class", classes, precisions.tolist()
            ),
        ),
        note="Images may be of several classes. mAP is the mean over classes of average precision; "
        "an image counts for top-1 and top-5 where one of its classes is the best answer, or among "
        "the best five.",
    )


def _of_each_class(what: str, note: str, classes: Sequence[str], values: Sequence[float]) -> Table:
    known = (None if math.isnan(value) else value for value in values)
    return Table(
        name=PER_CLASS,
        title="Class by class",
        note=note,
        look="bars",
        columns=(Column(title="class"), Column(title=what, unit=FRACTION)),
        rows=tuple(zip(classes, known, strict=True)),
    )
