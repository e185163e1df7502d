"""How many images a split has, and of which classes: known before it is written, and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convnextv2.data.classes import named
from convnextv2.data.collection import UNLABELLED, DataError, Members


@dataclass(frozen=True)
class Census:
    """The images of a split; `class_counts` has those of each of `classes`."""

    images: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    unlabelled: int


def take_census(members: Members, classes: Sequence[str]) -> Census:
    """Count listed images by their labels, which are numbers of `classes`.

    Raises:
        DataError: When a label is the number of none.
    """
    check_labels([members], classes)
    labels = members["label"]
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(classes))
    unlabelled = int((labels == UNLABELLED).sum())
    return Census(len(labels), tuple(classes), tuple(counts.tolist()), unlabelled)


def check_labels(listings: Sequence[Members], classes: Sequence[str]) -> None:
    """Raise DataError for labels that are neither the number of a class nor -1."""
    labels = [part["label"] for part in listings if len(part)]
    lowest = min((int(part.min()) for part in labels), default=UNLABELLED)
    highest = max((int(part.max()) for part in labels), default=UNLABELLED)
    for label in (lowest, highest):
        if not UNLABELLED <= label < len(classes):
            raise DataError(
                f"there is a label {label}, and {len(classes):,} classes ({named(classes)}): "
                f"expected 0 to {len(classes) - 1}, or {UNLABELLED} where an image has none"
            )
