"""Evaluations as tables: the gain and its margin, classes, confusions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PRETRAINED, SCRATCH, PROBE = "pretrained", "scratch", "probe"
MODELS = {PRETRAINED: "pretrained", SCRATCH: "from scratch", PROBE: "linear probe"}
"""Whose evaluations there may be, as a reader knows them."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What evaluation.json holds.

    Shares are from 0 to 1; `per_class` is recall, None (or NaN) where the set holds none of a
    class; `confusion` has true classes as rows and predicted ones as columns. `ema` is the same
    of the moving average of the weights, where one was kept.

    Where images may be of several classes there is `map`, their mean average precision, which
    `per_class` has of each class. A hit in top-1 or top-5 is one of the image's classes, and there
    is no `confusion`.
    """

    images: int
    top1: float
    top5: float
    classes: Sequence[str]
    per_class: Sequence[float | None]
    confusion: Sequence[Sequence[int]]
    seconds: float
    ema: "Evaluation | None" = None
    map: float | None = None

    @property
    def score(self) -> float:
        """What models are compared by."""
        return self.top1 if self.map is None else self.map

    @property
    def metric(self) -> str:
        """Name of the score."""
        return "top-1" if self.map is None else "mAP"

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Evaluation":
        """From the parsed file."""
        ema = content.get("ema")
        return cls(**{**content, "ema": None if ema is None else cls.of(ema)})

    def recall(self, label: int) -> float | None:
        value = self.per_class[label]
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True)
class ClassRow:
    """Recall of one class; `scratch` and `gain` are None without a control."""

    name: str
    pretrained: float | None
    scratch: float | None
    gain: float | None


@dataclass(frozen=True)
class Cell:
    """`images` of a true class that got one answer, their share of it; `hit`: the right one."""

    images: int
    share: float
    hit: bool


@dataclass(frozen=True)
class Pair:
    """Images of class `true` taken for `predicted`."""

    true: str
    predicted: str
    images: int
    share: float
    scratch: int | None


@dataclass(frozen=True)
class ResultRow:
    """A line of the table of results; `model` is what its colour stands for."""

    name: str
    model: str
    top1: float
    top5: float
    images: int
    map: float | None = None


def results(
    evaluations: Mapping[str, Evaluation], neighbours: Mapping[str, Any] | None
) -> list[ResultRow]:
    """The table of results: every model, and the moving average of its weights if there is one."""
    rows = []
    for model, name in MODELS.items():
        found = evaluations.get(model)
        if found is not None:
            rows.append(ResultRow(name, model, found.top1, found.top5, found.images, found.map))
        if found is not None and found.ema is not None:
            ema = found.ema
            rows.append(ResultRow(f"{name}, EMA", model, ema.top1, ema.top5, ema.images, ema.map))
    if neighbours is not None:
        values = [neighbours[key] for key in ("top1", "top5", "images")]
        rows.append(ResultRow("nearest neighbours", PROBE, *values))
    return rows


def margin(first: Evaluation, second: Evaluation) -> float | None:
    """Half the 95% interval of the difference in top-1 that comes from finite test sets.

    None for mAP, which is no share of images.

    It treats the two test sets as independent. They are the same images, on which models tend to
    agree, so the true interval is rather narrower. The spread over seeds is not in it.
    """
    if first.map is not None or second.map is not None:
        return None
    variances = [model.top1 * (1 - model.top1) / model.images for model in (first, second)]
    return 1.96 * math.sqrt(math.fsum(variances))


def class_table(pretrained: Evaluation, scratch: Evaluation | None, *, most: int) -> list[ClassRow]:
    """At most `most` classes, those with the largest gain first (the best without control).

    Where there are more, those that differ most are chosen; without control the worst.
    """
    rows = []
    for label, name in enumerate(pretrained.classes):
        recall = pretrained.recall(label)
        control = scratch.recall(label) if scratch else None
        # Rounded, so that equal gains stay in the order of the classes.
        gain = None if recall is None or control is None else round(recall - control, 9)
        rows.append(ClassRow(name, recall, control, gain))
    if scratch:
        rows.sort(key=lambda row: -abs(row.gain or 0))
        return sorted(rows[:most], key=lambda row: -(row.gain or 0))
    rows.sort(key=lambda row: 2 if row.pretrained is None else row.pretrained)
    return sorted(rows[:most], key=lambda row: -(row.pretrained or 0))


def confusion_table(evaluation: Evaluation) -> list[tuple[str, list[Cell]]]:
    """Rows of cells by true class."""
    return [
        (
            name,
            [
                Cell(images, images / max(1, sum(row)), true == answer)
                for answer, images in enumerate(row)
            ],
        )
        for true, (name, row) in enumerate(
            zip(evaluation.classes, evaluation.confusion, strict=True)
        )
    ]


def confused_pairs(pretrained: Evaluation, scratch: Evaluation | None, *, most: int) -> list[Pair]:
    """The `most` pairs of classes that are confused most often, most frequent first."""
    classes, counts = pretrained.classes, pretrained.confusion
    totals = [max(1, sum(row)) for row in counts]
    pairs = [
        Pair(
            classes[true],
            classes[predicted],
            images,
            images / totals[true],
            scratch.confusion[true][predicted] if scratch else None,
        )
        for true, row in enumerate(counts)
        for predicted, images in enumerate(row)
        if true != predicted and images
    ]
    return sorted(pairs, key=lambda pair: -pair.images)[:most]
