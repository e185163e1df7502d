"""How many images a split has, in all and of each class, before and after it is written."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convnextv2.data.collection import UNLABELLED, DataError, Members
from convnextv2.data.labels.classes import named
from convnextv2.data.labels.label_sets import LabelSets


@dataclass(frozen=True)
class Census:
    """Numbers of images of a split; `class_counts` has that of each of `classes`.

    With `multi_label` an image may have several classes, or none.
    """

    images: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    unlabelled: int
    multi_label: bool = False


def take_census(
    members: Members, classes: Sequence[str], label_sets: LabelSets | None = None
) -> Census:
    """Count listed images by their labels, which are numbers of `classes` or of sets of them.

    Raises:
        DataError: When a label is not the number of a class or set.
    """
    check_labels([members], classes, label_sets)
    labels = members["label"]
    if label_sets is None:
        counts = np.bincount(labels[labels != UNLABELLED], minlength=len(classes))
    else:
        counts = label_sets.class_counts(labels, len(classes))
    unlabelled = int((labels == UNLABELLED).sum())
    several = label_sets is not None
    return Census(len(labels), tuple(classes), tuple(counts.tolist()), unlabelled, several)


def check_labels(
    listings: Sequence[Members], classes: Sequence[str], label_sets: LabelSets | None = None
) -> None:
    """Raise DataError for labels that are neither the number of a class (or set) nor -1."""
    count = len(classes) if label_sets is None else label_sets.count
    labels = [part["label"] for part in listings if len(part)]
    lowest = min((int(part.min()) for part in labels), default=UNLABELLED)
    highest = max((int(part.max()) for part in labels), default=UNLABELLED)
    for label in (lowest, highest):
        if not UNLABELLED <= label < count:
            raise DataError(
                f"there is a label {label}, and {len(classes):,} classes ({named(classes)}): "
                f"expected 0 to {count - 1}, or {UNLABELLED} where an image has none"
            )
