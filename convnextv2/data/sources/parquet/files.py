"""Hugging Face parquet files: a column of images and, in some, a column of labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from convnextv2.data.collection import UNLABELLED, DataError, Members, Split, Stored
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import choose_split, hash_files, list_members, split_words
from convnextv2.data.sources.parquet.arrays import dimensions, npy_of
from convnextv2.data.sources.parquet.columns import Columns, choose_columns, described
from convnextv2.data.sources.parquet.labels import class_names, find_classes, label_numbers

NEAR = ("*.parquet", "data/*.parquet")
BELOW = ("*/*.parquet", "*/*/*.parquet")
"""Where the Hugging Face hub puts parquet files.

`data/train-00000-of-00001.parquet` is near; `<config>/train/0000.parquet` and
`data/<config>/train-00000-of-00001.parquet` are below.
"""
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files below `root`.

    An image's offset is its row, and its size is the mean size in its row group. Its key name is
    `<file>:<row>`, because names in the column need not be unique. If a row holds a list of images,
    the first one is read.
    """

    root: Path
    files: tuple[str, ...]
    image: str
    label: str | None
    classes: tuple[str, ...] = ()
    has_splits: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / file) for file in self.files]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        path = self.root / self.files[part]
        with open_parquet(path) as file:
            self._check_images(path, file)
            if passed_over is not None and (further := self._further_images(file)):
                passed_over["further images of a row"] += further
            return list_members(self._rows(part, file))

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        rows, done = members["offset"].astype(np.int64), 0
        path = self.root / self.files[part]
        with open_parquet(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                end = int(np.searchsorted(rows, last))
                if end > done:
                    for row, content in self._images(file, group, rows[done:end] - first):
                        yield Stored(f"{path}:{first + row}", content)
                first, done = last, end
        if done < len(rows):
            raise DataError(f"{path} has lost rows since it was listed: it has {first:,}")

    def fingerprint(self) -> str:
        return hash_files(self.root, self.files, self.classes, self.image, self.label)

    def _rows(self, part: int, file: pq.ParquetFile) -> Iterator[tuple[str, int, int, int]]:
        name, row = self.files[part], 0
        numbers = {name: number for number, name in enumerate(self.classes)}
        own_names = class_names(file.schema_arrow, self.label)
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            total = sum(leaf.total_uncompressed_size for leaf in self._leaves(file, group))
            labels = [UNLABELLED] * count
            if self.label is not None:
                column = file.read_row_group(group, columns=[self.label]).column(0)
                labels = label_numbers(self.root / name, row, column, own_names, numbers)
            for label in labels:
                yield f"{name}:{row}", row, total // count, label
                row += 1

    def _images(
        self, file: pq.ParquetFile, group: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, bytes]]:
        """The encoded images in these (sorted) rows of a row group, read in small batches."""
        first = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[self.image]):
            column = batch.column(0)
            content_of = npy_of if dimensions(column.type) else _bytes_of
            begin, end = np.searchsorted(rows, (first, first + len(column)))
            for row in rows[begin:end]:
                yield int(row), content_of(column[int(row) - first])
            first += len(column)

    def _check_images(self, path: Path, file: pq.ParquetFile) -> None:
        if self.image not in file.schema_arrow.names:
            raise DataError(f"{path} has no column {self.image}, which {self.parts[0]} has")
        leaves = [leaf for group in range(file.num_row_groups)
                  for leaf in self._leaves(file, group)
                  if not leaf.path_in_schema.endswith(".path")]  # fmt: skip
        empty = [leaf.is_stats_set and leaf.statistics.null_count == leaf.num_values
                 for leaf in leaves]  # fmt: skip
        if empty and all(empty):
            raise DataError(
                f"{path} has columns {described(file.schema_arrow)}, but no bytes in {self.image}: "
                "its images are elsewhere. Put them into class folders, write the file with the "
                "images in it (push_to_hub of datasets does), or name another column by "
                "--image-column (data.image_column)"
            )

    def _further_images(self, file: pq.ParquetFile) -> int:
        """Number of images that are not read because they are not the first of their row."""
        if dimensions(file.schema_arrow.field(self.image).type):
            return 0  # The nested lists are the pixels of one image.
        return sum(
            leaf.num_values - file.metadata.row_group(group).num_rows
            for group in range(file.num_row_groups)
            for leaf in self._leaves(file, group)[:1]
        )

    def _leaves(self, file: pq.ParquetFile, group: int) -> list[pq.ColumnChunkMetaData]:
        """Column chunks of the image column: `image.bytes` and `image.path`, or `image` alone."""
        about = file.metadata.row_group(group)
        leaves = map(about.column, range(about.num_columns))
        return [leaf for leaf in leaves
                if leaf.path_in_schema == self.image
                or leaf.path_in_schema.startswith(f"{self.image}.")]  # fmt: skip


def open_parquet_files(
    root: Path, names: Sequence[str], split: Split, has_splits: bool, wanted: Columns
) -> ParquetFiles:
    """Open the files `names` below `root` whose names say that they belong to a split.

    Raises:
        DataError: When there is no column of images, several columns could be it, or the files name
            different classes.
    """
    chosen, told = choose_split(root, names, split)
    paths = [root / name for name in chosen]
    with open_parquet(paths[0]) as file:
        columns = choose_columns(paths[0], file.schema_arrow, wanted)
    classes: tuple[str, ...] = ()
    if columns.label is not None:
        classes = find_classes(paths, open_parquet, columns.label)
    assert columns.image is not None
    notes: tuple[str, ...] = ()
    if columns not in (Columns("image", "label"), Columns("image", None), wanted):
        labels = f"labels from {columns.label}" if columns.label else "no labels"
        notes = (f"{root}: images are read from column {columns.image}, {labels}",)
    return ParquetFiles(
        root, tuple(chosen), columns.image, columns.label, classes, has_splits or told, notes
    )


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file; raises DataError when it is not a readable parquet file."""
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no readable parquet file: {error}") from error


def find_parquet_files(root: Path, patterns: Sequence[str]) -> list[str]:
    """Names of the parquet files in `root` that match the first pattern with any match.

    Raises:
        DataError: When the files belong to several configurations.
    """
    names: list[str] = []
    for pattern in patterns:
        found = (path.relative_to(root).as_posix() for path in root.glob(pattern))
        names = names or sorted(name for name in found if not is_leftover(name))
    configs = sorted({str(_config_folder(PurePosixPath(name))) for name in names})
    if len(configs) > 1:
        raise DataError(
            f"{root} holds parquet files of {len(configs)} configurations, {', '.join(configs)}: "
            "give the folder of one of them"
        )
    return names


def _config_folder(file: PurePosixPath) -> PurePosixPath:
    """The folder of a configuration: the file's own, or the one above if its own is a split's."""
    told_by_folder = not split_words(file.name) and split_words(file.parent.name)
    return file.parent.parent if told_by_folder else file.parent


def _bytes_of(row: pa.Scalar) -> bytes:
    """The image in a row; empty bytes for a null, whose image is stored elsewhere."""
    value = row.as_py()
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else b""
