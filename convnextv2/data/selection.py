"""Which images of a collection are used: a split, some classes, k images a class, a limit.

This is decided on the listings, by hashes of the images' names. So adding images moves none from
one split to another, and a smaller selection is a subset of a larger one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from convnextv2 import PathLike
from convnextv2.data.collection import UNLABELLED, DataError, Members, Source, Split
from convnextv2.data.labels.census import check_labels
from convnextv2.data.labels.label_sets import LabelSets
from convnextv2.data.sources import Columns, open_source
from convnextv2.randomness import Draw, uniform

VAL_FRACTION = 0.1
_LABELS, _MAX_IMAGES = Draw.HOLD_OUT + 1, Draw.HOLD_OUT + 2


@dataclass(frozen=True)
class Selection:
    """What to take of a collection; the fields are applied in their order.

    `val_fraction` is the fraction of the training images that makes the split "val" (0: all are
    trained on); with None, the splits are the collection's own. Only images of `classes` are kept,
    and these are numbered anew by their sorted names, as ImageNet-1K numbers its synsets.
    `labels_per_class` takes that many images of each class, `max_images` at most so many in all.
    """

    split: Split = "train"
    val_fraction: float | None = None
    classes: tuple[str, ...] | None = None
    labels_per_class: int | None = None
    max_images: int | None = None

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise DataError(f"val_fraction is a share from 0 to below 1, not {self.val_fraction}")
        if self.val_fraction == 0 and self.split == "val":
            raise DataError("val_fraction = 0 leaves nothing for the split 'val'; give a share")
        for name in ("labels_per_class", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} = {value} leaves no images; give at least 1")
        if self.classes is not None and len(set(self.classes)) < max(1, len(self.classes)):
            twice = next((c for c in self.classes if self.classes.count(c) > 1), None)
            raise DataError(f"class {twice} is named twice" if twice else "no classes are named")


def open_selected(
    root: PathLike,
    selection: Selection,
    labels: PathLike | None = None,
    columns: Columns | None = None,
) -> tuple[Source, Selection]:
    """Open a selection's source, and decide where its split comes from.

    `labels` and `columns` are those of `open_source`.

    Of a collection without splits a tenth is held out. With a `val_fraction`, "val" is taken from
    the training images of the collection.

    Raises:
        DataError: When the collection cannot be used.
    """
    if columns is not None and columns.multi_label:
        for name in ("classes", "labels_per_class"):
            if getattr(selection, name) is not None:
                raise DataError(f"{name} chooses images by their one label; leave it out here")
    split = selection.split if selection.val_fraction is None else "train"
    source = open_source(root, split, labels, columns)
    if selection.val_fraction is None and not source.has_splits:
        return source, replace(selection, val_fraction=VAL_FRACTION)
    return source, selection


def select(
    listings: Sequence[Members],
    classes: tuple[str, ...],
    selection: Selection,
    seed: int = 0,
    label_sets: LabelSets | None = None,
) -> tuple[list[Members], tuple[str, ...]]:
    """The images that `selection` takes, as listings by part, and the names of their classes.

    Labels are numbers of `label_sets`, where images may have several. Classes without names are
    named by their numbers. Memory: beside the listings and the result (24 bytes an image each),
    40 bytes for each image that `max_images` or `labels_per_class` choose from.

    Raises:
        DataError: When nothing is left, or the labels that are asked for are not there.
    """
    total = sum(map(len, listings))
    # The largest label is found before anything is held out, so that both splits have all classes.
    classes = classes or _number_names(listings)
    check_labels(listings, classes, label_sets)
    chosen = list(listings)
    if selection.val_fraction is not None:
        chosen = [_split(part, selection.split, selection.val_fraction, seed) for part in chosen]
        if total and not any(map(len, chosen)):
            raise DataError(
                f"{total:,} images are too few to hold out a share of {selection.val_fraction} as "
                f"a {selection.split!r} split; make folders train/ and val/, or give another "
                "val_fraction"
            )
    if selection.classes is not None:
        chosen, classes = _take_classes(chosen, classes, selection)
    if selection.labels_per_class is not None:
        chosen = _take_labels(chosen, classes, selection.labels_per_class, seed)
    if selection.max_images is not None:
        together = np.zeros(sum(map(len, chosen)), np.int32)
        chosen = _take_smallest(chosen, together, selection.max_images, seed, _MAX_IMAGES)
    if not any(map(len, chosen)):
        raise DataError(f"no images are left of {total:,}")
    return chosen, classes


def _draws(keys: NDArray[np.uint64], seed: int, draw: int) -> NDArray[np.float64]:
    return uniform(
        np.full(1, seed, np.uint64), np.zeros(1, np.uint64), keys, np.full(1, draw, np.uint64)
    )


def _split(part: Members, split: Split, fraction: float, seed: int) -> Members:
    held = _draws(part["key"], seed, Draw.HOLD_OUT) < fraction
    return part[held if split == "val" else ~held]


def _number_names(listings: Sequence[Members]) -> tuple[str, ...]:
    largest = max((int(part["label"].max()) for part in listings if len(part)), default=UNLABELLED)
    return tuple(map(str, range(largest + 1)))


def _take_classes(
    listings: Sequence[Members], classes: tuple[str, ...], selection: Selection
) -> tuple[list[Members], tuple[str, ...]]:
    names = tuple(sorted(selection.classes or ()))
    numbers = {name: number for number, name in enumerate(classes)}
    missing = [name for name in names if name not in numbers]
    # A validation split may have no image of a class; the training images show what is a typo.
    if missing and (selection.split == "train" or len(missing) == len(names)):
        near = get_close_matches(missing[0], classes, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{len(missing)} of the {len(names)} classes asked for are not among the "
            f"{len(classes):,} of the source, such as {missing[0]}{hint}"
        )
    # One more place at the end, for UNLABELLED (-1).
    renumbered = np.full(len(classes) + 1, UNLABELLED, np.int32)
    for number, name in enumerate(names):
        if name in numbers:
            renumbered[numbers[name]] = number
    chosen = []
    for part in listings:
        labels = renumbered[part["label"]]
        kept = part[labels != UNLABELLED]
        kept["label"] = labels[labels != UNLABELLED]
        chosen.append(kept)
    return chosen, names


def _take_labels(
    listings: Sequence[Members], classes: tuple[str, ...], count: int, seed: int
) -> list[Members]:
    labels = np.concatenate([part["label"] for part in listings])
    if unlabelled := int((labels == UNLABELLED).sum()):
        raise DataError(
            f"labels_per_class needs labels: {unlabelled:,} of {len(labels):,} images have none"
        )
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < count:
        fewest = int(counts.argmin())
        raise DataError(
            f"labels_per_class = {count}, but class {classes[fewest]} has only {counts[fewest]} "
            f"images; give at most {counts[fewest]}, or the classes that have more"
        )
    return _take_smallest(listings, labels, count, seed, _LABELS)


def _take_smallest(
    listings: Sequence[Members], groups: NDArray[np.int32], count: int, seed: int, draw: int
) -> list[Members]:
    """The `count` images of each group with the smallest draws; of equal ones the first."""
    draws = np.concatenate([_draws(part["key"], seed, draw) for part in listings])
    order = np.lexsort((draws, groups))
    starts = np.searchsorted(groups[order], np.arange(groups.max(initial=0) + 1))
    rank = np.arange(len(order)) - starts[groups[order]]
    kept = np.zeros(len(order), bool)
    kept[order[rank < count]] = True
    ends = np.cumsum([len(part) for part in listings])[:-1]
    return [part[keep] for part, keep in zip(listings, np.split(kept, ends), strict=True)]
