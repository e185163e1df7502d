"""Hugging Face parquet files: a column `image`, and `label` where the images have one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from convnextv2.data.collection import UNLABELLED, DataError, Members, Split, Stored
from convnextv2.data.sources.listing import choose_split, hash_files, list_members

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files below `root`. An image's offset is its row, its size the mean of its row group.

    Its key name is `<file>:<row>`: the names that may be in the column need not be different.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...] = ()
    has_splits: bool = False

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / file) for file in self.files]

    def members(self, part: int) -> Members:
        with open_parquet(self.root / self.files[part]) as file:
            return list_members(self._rows(self.files[part], file))

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        rows, done = members["offset"].astype(np.int64), 0
        path = self.root / self.files[part]
        with open_parquet(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                end = int(np.searchsorted(rows, last))
                if end > done:
                    for row, content in _images(file, group, rows[done:end] - first):
                        yield Stored(f"{path}:{first + row}", content)
                first, done = last, end
        if done < len(rows):
            raise DataError(f"{path} has lost rows since it was listed: it has {first:,}")

    def fingerprint(self) -> str:
        return hash_files(self.root, self.files, self.classes)

    def _rows(self, name: str, file: pq.ParquetFile) -> Iterator[tuple[str, int, int, int]]:
        row = 0
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            columns = map(about.column, range(about.num_columns))
            total = sum(
                column.total_uncompressed_size
                for column in columns
                if column.path_in_schema.split(".")[0] == "image"
            )
            for label in _labels(file, group):
                yield f"{name}:{row}", row, total // about.num_rows, label
                row += 1


def open_parquet_files(
    root: Path, names: Sequence[str], split: Split, has_splits: bool
) -> ParquetFiles:
    """Open those of the files `names` below `root` that are of a split, by their names.

    Raises:
        DataError: When they have no column `image` of encoded images.
    """
    chosen, told = choose_split(root, names, split)
    with open_parquet(root / chosen[0]) as file:
        classes = _class_names(file.schema_arrow)
    return ParquetFiles(root, tuple(chosen), classes, has_splits or told)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file; raises DataError when it is none that can be used."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no readable parquet file: {error}") from error
    schema = file.schema_arrow
    if "image" not in schema.names or not _is_image_type(schema.field("image").type):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(
            f"{path} has columns {columns}; expected image (the bytes of image files, or a struct "
            "with a field bytes) and, for labelled images, label (integers)"
        )
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise DataError(f"{path} has labels of {schema.field('label').type}; expected integers")
    return file


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image_type(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _images(
    file: pq.ParquetFile, group: int, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> Iterator[tuple[int, bytes]]:
    """Encoded images of these (sorted) rows of a row group, few of the others in memory."""
    nested = pa.types.is_struct(file.schema_arrow.field("image").type)
    column = "image.bytes" if nested else "image"
    first = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
        images = batch.column(0).field("bytes") if nested else batch.column(0)
        begin, end = np.searchsorted(rows, (first, first + len(images)))
        for row in rows[begin:end]:
            # A null (an image elsewhere, of which only the path is here) is an empty one.
            yield int(row), images[int(row) - first].as_py() or b""
        first += len(images)


def _labels(file: pq.ParquetFile, group: int) -> list[int]:
    if "label" not in file.schema_arrow.names:
        return [UNLABELLED] * file.metadata.row_group(group).num_rows
    column = file.read_row_group(group, columns=["label"]).column(0)
    return [UNLABELLED if label is None else label for label in column.to_pylist()]


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names that the library `datasets` keeps in the schema."""
    told = (schema.metadata or {}).get(b"huggingface")
    if told is None or "label" not in schema.names:
        return ()
    features = json.loads(told).get("info", {}).get("features", {})
    return tuple(features.get("label", {}).get("names", ()))
