"""What the columns of a list mean: which names the images, which hold labels, which classes."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from convnextv2.data.collection import UNLABELLED, DataError
from convnextv2.data.labels.label_sets import LabelSets
from convnextv2.data.sources.parquet import Columns

# Usual column names in lower case, without blanks and underscores. The first one present is used.
_IMAGES = (
    "filename", "file", "path", "filepath", "imagepath", "imgpath", "image", "img", "imagename",
    "imagefile", "imageindex", "imageid",
)  # fmt: skip
_LABELS = (
    "label", "labels", "class", "classes", "classname", "labelname", "category", "categories",
    "target", "targets", "tags", "finelabel", "findinglabels",
)  # fmt: skip
_SEPARATORS = ("|", ";", ",")
_NUMBER = re.compile(r"(-?\d+)(\.0+)?")
_NAMED = 5


@dataclass(frozen=True)
class ChosenColumns:
    """The column that names the images, and those of labels: one, or a 0/1 column per class."""

    image: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the images of a list.

    `numbers` (N,) are class numbers or, if `sets` is given, indices into it. `first_rows` (N,) are
    the rows of the list that name each image for the first time.
    """

    numbers: NDArray[np.int32]
    classes: tuple[str, ...]
    sets: LabelSets | None
    first_rows: NDArray[np.int64]


def choose_list_columns(path: Path, table: pa.Table, wanted: Columns) -> ChosenColumns:
    """Choose the columns of a list to read.

    If images have several labels, these are in one label column or, if there is none, in a column
    of 0 and 1 (or -1 and 1) for each class.

    Raises:
        DataError: When no column names images, or a requested column does not exist.
    """
    names = table.column_names
    for what, name in (("image", wanted.image), ("label", wanted.label)):
        if name is not None and name not in names:
            raise DataError(f"{path} has no column {name} of {what}s; it has {', '.join(names)}")
    image = wanted.image or _called(names, _IMAGES)
    if image is None:
        raise DataError(
            f"{path} has columns {', '.join(names)}: none is called as files of images are "
            "(file_name, path, image, ...); data.image_column names it"
        )
    label = wanted.label or _called([name for name in names if name != image], _LABELS)
    if label is not None:
        return ChosenColumns(image, (label,))
    marks = [name for name in names if name != image and _is_mark(table[name])]
    return ChosenColumns(image, tuple(marks) if wanted.multi_label and len(marks) > 1 else ())


def read_labels(
    path: Path, table: pa.Table, columns: ChosenColumns, multi_label: bool
) -> tuple[pa.StringArray, Labels]:
    """Read the paths of a list's images, each once, and their labels.

    With `multi_label` an image may have several labels, in one row or spread over several rows.

    Raises:
        DataError: When an image is named twice or has several labels, but `multi_label` is not set.
    """
    paths = table[columns.image].combine_chunks()
    if isinstance(paths, pa.ChunkedArray):
        paths = pa.concat_arrays(paths.chunks) if paths.num_chunks else pa.array([], pa.string())
    encoded = paths.dictionary_encode()
    images = encoded.indices.to_numpy()
    _, first_rows = np.unique(images, return_index=True)
    if len(first_rows) < len(paths) and not multi_label:
        repeated = np.setdiff1d(np.arange(len(paths)), first_rows)
        named = ", ".join(sorted({str(paths[row]) for row in repeated[:_NAMED].tolist()}))
        raise DataError(
            f"{path} names {len(repeated):,} images twice, such as {named}: leave one row of each; "
            "if an image has a label in each row, set data.multi_label=true"
        )
    if not columns.labels:
        numbers = np.full(len(first_rows), UNLABELLED, np.int32)
        return encoded.dictionary, Labels(numbers, (), None, first_rows)
    if len(columns.labels) > 1:
        sets = [_marked(columns.labels, row) for row in _marks(table, columns.labels)]
        kinds = np.arange(len(paths))
    else:
        column = pa.chunked_array(table[columns.labels[0]]).combine_chunks()
        texts = column.dictionary_encode()
        kinds = texts.indices.to_numpy()
        sets = _names_of(path, texts.dictionary.to_pylist(), multi_label)
    if multi_label:
        labels = _several(images, kinds, sets, first_rows, columns.labels[1:] and columns.labels)
    else:
        labels = _single(kinds, sets, first_rows)
    return encoded.dictionary, labels


def _single(
    kinds: NDArray[np.integer], names: Sequence[Sequence[str]], first_rows: NDArray[np.int64]
) -> Labels:
    """One label per image: numbers stay as they are, names are numbered in sorted order."""
    texts = ["".join(one) for one in names]
    told = [text for text in texts if text]
    if told and all(map(_NUMBER.fullmatch, told)):
        classes: tuple[str, ...] = ()
        numbers = [_number(text) if text else UNLABELLED for text in texts]
    else:
        classes = tuple(sorted(set(told)))
        number_of = {name: number for number, name in enumerate(classes)}
        numbers = [number_of.get(text, UNLABELLED) for text in texts]
    return Labels(np.array(numbers, np.int32)[kinds], classes, None, first_rows)


def _several(
    images: NDArray[np.integer],
    kinds: NDArray[np.integer],
    names: Sequence[Sequence[str]],
    first_rows: NDArray[np.int64],
    classes: Sequence[str],
) -> Labels:
    """Any number of labels per image, collected from all of its rows."""
    told = {name for one in names for name in one}
    if not classes and told and all(map(_NUMBER.fullmatch, told)):
        names = [[str(_number(name)) for name in one] for one in names]
        highest = max(_number(name) for name in told)
        classes = tuple(map(str, range(highest + 1)))
    classes = tuple(classes) or tuple(sorted(told))
    number_of = {name: number for number, name in enumerate(classes)}
    of_kind = [frozenset(number_of[name] for name in one) for one in names]
    found: list[frozenset[int]] = [frozenset()] * len(first_rows)
    for image, kind in zip(images.tolist(), kinds.tolist(), strict=True):
        found[image] = found[image] | of_kind[kind]
    distinct = {one: number for number, one in enumerate(dict.fromkeys(found))}
    numbers = np.array([distinct[one] for one in found], np.int32)
    return Labels(numbers, classes, LabelSets.of([sorted(one) for one in distinct]), first_rows)


def _names_of(path: Path, texts: Sequence[str], multi_label: bool) -> list[list[str]]:
    """The labels in each distinct text of a column."""
    separator = next((mark for mark in _SEPARATORS if any(mark in text for text in texts)), None)
    names = []
    for text in texts:
        if text.startswith("["):
            try:
                found = [str(name) for name in json.loads(text)]
            except json.JSONDecodeError as error:
                raise DataError(f"{path} has a label {text[:60]}, no list of JSON") from error
        else:
            # Class names may contain commas ("tench, Tinca tinca") but no "|".
            found = text.split(separator if multi_label else "|")
        found = [name.strip() for name in found if name.strip()]
        if len(found) > 1 and not multi_label:
            raise DataError(
                f"{path} has images of several labels, such as {text[:60]}: "
                "data.multi_label=true trains on all of them"
            )
        names.append(found)
    return names


def _marks(table: pa.Table, columns: Sequence[str]) -> NDArray[np.bool_]:
    """(N, classes): whether each row is marked with each class."""
    marked = [pc.equal(pc.utf8_trim_whitespace(table[name]), pa.scalar("1")) for name in columns]
    return np.stack([column.to_numpy() for column in marked], axis=1)


def _marked(classes: Sequence[str], row: NDArray[np.bool_]) -> list[str]:
    return [classes[number] for number in np.flatnonzero(row).tolist()]


def _is_mark(column: pa.ChunkedArray) -> bool:
    values = set(pc.utf8_trim_whitespace(column.unique()).to_pylist())
    return values <= {"0", "1"} or values <= {"-1", "1"}


def _called(names: Sequence[str], usual: Sequence[str]) -> str | None:
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return next((plain[name] for name in usual if name in plain), None)


def _number(text: str) -> int:
    found = _NUMBER.fullmatch(text)
    assert found is not None
    return int(found[1])
