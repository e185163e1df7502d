"""Images that may have several labels: each distinct set of classes is stored once and numbered.

An image's label, in listings and in the records of shards, is the number of its set, so that it
stays one integer. The sets are in a file beside the manifest.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from convnextv2 import PathLike
from convnextv2.data.collection import UNLABELLED, DataError, Source
from convnextv2.durable import sync

LABEL_SETS = "label-sets.npy"


@dataclass(frozen=True, eq=False)
class LabelSets:
    """Sets of classes, numbered.

    Attributes:
        count: How many sets there are.
        pairs: (N, 2) int32, ascending rows (set's number, one of its classes); an empty set has
            no row.
    """

    count: int
    pairs: NDArray[np.int32]

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]]) -> "LabelSets":
        """From the classes of each set."""
        pairs = [(number, label) for number, one in enumerate(sets) for label in sorted(set(one))]
        return cls(len(sets), np.array(pairs, np.int32).reshape(-1, 2))

    def multi_hot(self, labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float32]:
        """(B, num_classes): 1 where an image has the class; its labels (B,) are numbers of sets."""
        hot = np.zeros((len(labels), num_classes), np.float32)
        for row, label in enumerate(labels):
            if label != UNLABELLED:
                hot[row, self.classes_of(int(label))] = 1
        return hot

    def classes_of(self, label: int) -> NDArray[np.int32]:
        """The classes of a set."""
        begin, end = self._starts[label : label + 2]
        return self.pairs[begin:end, 1]

    def class_counts(self, labels: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
        """How many images have each class."""
        images = np.bincount(labels[labels != UNLABELLED], minlength=self.count)
        weights = images[self.pairs[:, 0]]
        return np.bincount(self.pairs[:, 1], weights, num_classes).astype(np.int64)

    def renumbered(self, numbers: NDArray[np.int32]) -> "LabelSets":
        """The same sets, with class c renumbered to `numbers[c]`."""
        return LabelSets(
            self.count, np.stack([self.pairs[:, 0], numbers[self.pairs[:, 1]]], axis=1)
        )

    def save(self, path: PathLike) -> None:
        """Write a file that `read_label_sets` reads, flushed to disk."""
        with Path(path).open("wb") as file:
            np.save(file, self.pairs)
        sync(path)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.searchsorted(self.pairs[:, 0], np.arange(self.count + 1))


def read_label_sets(path: PathLike, count: int, sha256: str) -> LabelSets:
    """Read `count` sets; raises DataError when the file is not as it was written."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} has changed since it was written; write the shards again")
    return LabelSets(count, np.load(io.BytesIO(content)))


@runtime_checkable
class MultiLabelSource(Source, Protocol):
    """A source whose labels may be numbers of sets."""

    @property
    def label_sets(self) -> LabelSets | None:
        """The sets; None when every image has one class."""


def label_sets_of(source: Source) -> LabelSets | None:
    """The sets that a source's labels are numbers of, if they are."""
    return source.label_sets if isinstance(source, MultiLabelSource) else None
