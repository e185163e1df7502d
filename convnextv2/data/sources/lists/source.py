"""Images named by a list: CSV, TSV, JSON, lines of text, or an image folder's `metadata.csv`.

Paths are relative to the list's folder. Every process reads the list once. Its rows are shuffled in
a fixed order and cut into parts, so that a list sorted by class still gives mixed shards.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convnextv2.data.collection import UNLABELLED, DataError, Members, Split, Stored
from convnextv2.data.labels.label_sets import LabelSets
from convnextv2.data.order.permutation import permute
from convnextv2.data.sources.listing import (
    SPLIT_NAMES,
    check_unchanged,
    key_name,
    list_members,
    printable,
)
from convnextv2.data.sources.lists.labels import Labels, choose_list_columns, read_labels
from convnextv2.data.sources.lists.rows import METADATA, read_list
from convnextv2.data.sources.parquet import Columns

_ROWS = 16_384
_NAMED = 5


@dataclass(frozen=True)
class ListSource:
    """The images of a list. The offset of an image is its number in the list.

    Without `split`, all images of the list are read.
    """

    path: Path
    columns: Columns
    split: Split | None
    classes: tuple[str, ...]
    has_splits: bool = False
    notes: tuple[str, ...] = ()

    @property
    def label_sets(self) -> LabelSets | None:
        return self._read().labels.sets

    @property
    def parts(self) -> Sequence[str]:
        count = -(-len(self._read().chosen) // _ROWS)
        return [f"{self.path}, part {number + 1} of {count}" for number in range(count)]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        listed = self._read()
        total = len(listed.chosen)
        places = np.arange(part * _ROWS, min((part + 1) * _ROWS, total), dtype=np.uint64)
        images = listed.chosen[permute(places, total, 0)].tolist()
        return list_members(
            (listed.key_name(image), image, listed.size(image), int(listed.labels.numbers[image]))
            for image in images
        )

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        listed = self._read()
        for image, key in zip(members["offset"].tolist(), members["key"].tolist(), strict=True):
            path = listed.file(image)
            check_unchanged(str(path), listed.key_name(image), key)
            try:
                yield Stored(printable(str(path)), path.read_bytes())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error

    def fingerprint(self) -> str:
        listed, total = self._read(), hashlib.sha256(self.path.read_bytes())
        total.update(repr((self.columns, self.split, self.classes)).encode())
        sizes = [listed.size(image) for image in listed.chosen.tolist()]
        total.update(np.array(sizes, np.int64).tobytes())
        return total.hexdigest()

    def _read(self) -> "Listed":
        return _listed(self.path, _stamp(self.path), self.columns, self.split)


@dataclass(frozen=True, eq=False)
class Listed:
    """What a list says: the `paths` and `labels` of its images, and which are of the split.

    `chosen` are the numbers of the split's images or, without a split, of all images.
    """

    path: Path
    paths: pa.StringArray
    labels: Labels
    chosen: NDArray[np.int64]

    def file(self, image: int) -> Path:
        return self.path.parent / str(self.paths[image])

    def size(self, image: int) -> int:
        """Size of a file in bytes.

        Raises:
            DataError: When the file is missing; the message also names other missing files.
        """
        try:
            return self.file(image).stat().st_size
        except OSError:
            gone = [number for number in self.chosen.tolist() if not self.file(number).is_file()]
            names = ", ".join(str(self.paths[number]) for number in gone[:_NAMED])
            raise DataError(
                f"{self.path}: {len(gone):,} of the {len(self.chosen):,} files it names are not "
                f"there, such as {names}; paths are relative to {self.path.parent}"
            ) from None

    def key_name(self, image: int) -> str:
        """The name from which the image's key is made.

        An image of one named class has the same name as in a class folder.
        """
        path, label = str(self.paths[image]), int(self.labels.numbers[image])
        if self.labels.sets is not None or not self.labels.classes or label == UNLABELLED:
            return os.path.normpath(path)
        return key_name(self.labels.classes[label], path)


def open_list(path: Path, split: Split, columns: Columns, has_splits: bool = False) -> ListSource:
    """Open the images of a list that belong to a split.

    The column `split` says which do. If the list has no such column, the split may have a file of
    its own beside it (`train.csv` and `val.csv`). Otherwise the list has no splits, unless
    `has_splits` says that its folder has them.

    Raises:
        DataError: When the list cannot be read, has no such split, or names an image twice.
    """
    beside = None
    if _split_column(_table(path, _stamp(path))) is None:
        beside = _list_of(path, split)
        path = beside or path
    table = _table(path, _stamp(path))
    column = _split_column(table)
    told = None if column is None else split
    listed = _listed(path, _stamp(path), columns, told)
    if not len(listed.chosen):
        where = (
            f"in its column {column} none of {', '.join(SPLIT_NAMES[split])}" if told else "none"
        )
        raise DataError(f"{path} names no images of the split {split!r}: {where}")
    notes = []
    if not choose_list_columns(path, table, columns).labels:
        notes.append(
            f"{path}: no column is called labels ({', '.join(table.column_names)}), so its images "
            "are read as unlabelled; data.label_column names one"
        )
    has_splits = has_splits or told is not None or beside is not None
    return ListSource(path, columns, told, listed.labels.classes, has_splits, tuple(notes))


def find_metadata(root: Path, columns: Columns) -> Path | None:
    """The list of an image folder, if it has labels; lists of captions or boxes are not used."""
    for path in (root / name for name in METADATA):
        if path.is_file():
            table = _table(path, _stamp(path))
            if choose_list_columns(path, table, columns).labels:
                return path
    return None


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=2)
def _table(path: Path, stamp: int) -> pa.Table:
    return read_list(path)


@lru_cache(maxsize=4)
def _listed(path: Path, stamp: int, columns: Columns, split: Split | None) -> Listed:
    table = _table(path, stamp)
    chosen = choose_list_columns(path, table, columns)
    paths, labels = read_labels(path, table, chosen, columns.multi_label)
    column = _split_column(table)
    images = np.arange(len(paths))
    if split is not None and column is not None:
        told = np.array([str(value).strip().lower() for value in table[column].to_pylist()])
        word = next((word for word in SPLIT_NAMES[split] if (told == word).any()), None)
        images = np.flatnonzero(told[labels.first_rows] == word)
    return Listed(path, paths, labels, images)


def _split_column(table: pa.Table) -> str | None:
    return next((name for name in table.column_names if name.strip().lower() == "split"), None)


def _list_of(path: Path, split: Split) -> Path | None:
    """The list of `split`, if two lists lie side by side whose names say which splits they are."""
    names = "|".join(word for names in SPLIT_NAMES.values() for word in names)
    pattern = re.compile(rf"(?<![a-z])({names})(?![a-z])", re.IGNORECASE)

    def named(split: Split) -> list[Path]:
        stems = (pattern.sub(word, path.stem, count=1) for word in SPLIT_NAMES[split])
        files = (path.with_name(stem + path.suffix) for stem in stems)
        return [file for file in files if file.is_file()]

    if pattern.search(path.stem) is None or not all(named(each) for each in SPLIT_NAMES):
        return None
    return named(split)[0]
