"""What labels in parquet files mean: numbers, named in the schema or not, or names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from convnextv2.data.collection import UNLABELLED, DataError
from convnextv2.data.sources.parquet.columns import described, features_of, plain_type

_NAMED = 5


def class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Class names that the library `datasets` stores in the schema for a column of numbers."""
    if label is None or not pa.types.is_integer(plain_type(schema.field(label).type)):
        return ()
    about = features_of(schema).get(label)
    names = about.get("names") if isinstance(about, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def find_classes(
    paths: Sequence[Path], open_file: Callable[[Path], pq.ParquetFile], label: str
) -> tuple[str, ...]:
    """The classes of files that belong together; text labels are class names, in sorted order.

    Raises:
        DataError: When files name different classes, or some have numbers and others text.
    """
    named: dict[Path, tuple[str, ...]] = {}
    texts: set[str] = set()
    kinds: dict[bool, Path] = {}
    for path in paths:
        with open_file(path) as file:
            schema = file.schema_arrow
            if label not in schema.names:
                raise DataError(f"{path} has no column {label}, only {described(schema)}")
            kind = plain_type(schema.field(label).type)
            if pa.types.is_null(kind):
                continue
            kinds[pa.types.is_integer(kind)] = path
            if pa.types.is_integer(kind):
                named[path] = class_names(schema, label)
            else:
                values = file.read(columns=[label]).column(0).unique().to_pylist()
                texts.update(str(value) for value in values if _is_told(value))
    if len(kinds) > 1:
        raise DataError(f"column {label} has numbers in {kinds[True]}, but text in {kinds[False]}")
    return _same_names(named) or tuple(sorted(texts))


def _same_names(named: Mapping[Path, tuple[str, ...]]) -> tuple[str, ...]:
    """The class names that all files with names share, in the order of the first such file."""
    files = [(path, names) for path, names in named.items() if names]
    for path, names in files:
        first, others = files[0]
        if set(names) != set(others):
            raise DataError(
                f"{first} and {path} name other classes: {_alone(others, names)} against "
                f"{_alone(names, others)}. Files of one collection have the same, in any order"
            )
    return files[0][1] if files else ()


def label_numbers(
    where: Path, row: int, column: pa.ChunkedArray, names: Sequence[str], numbers: Mapping[str, int]
) -> list[int]:
    """Class numbers of a column whose first value is in row `row` of the file.

    `names` are the class names of this file, `numbers` the class numbers of the collection by name.

    Raises:
        DataError: When a label is beyond the class names, or not among them.
    """
    renumbered = [numbers[name] for name in names] or list(range(len(numbers)))
    found = []
    for number, value in enumerate(column.to_pylist(), row):
        if not _is_told(value):
            found.append(UNLABELLED)
        elif not isinstance(value, int) or isinstance(value, bool):
            if str(value) not in numbers:
                raise DataError(f"{where}: row {number:,} has label {value}: the file has changed")
            found.append(numbers[str(value)])
        elif renumbered and UNLABELLED <= value < len(renumbered):
            found.append(UNLABELLED if value == UNLABELLED else renumbered[value])
        elif not renumbered and value >= UNLABELLED:
            found.append(value)
        else:
            expected = f"0 to {len(renumbered) - 1}, as it names {len(renumbered)} classes"
            raise DataError(
                f"{where}: row {number:,} has label {value}; expected "
                f"{expected if renumbered else '0 or more'}, or {UNLABELLED} where there is none"
            )
    return found


def _is_told(value: object) -> bool:
    return value is not None and value != ""


def _alone(names: Sequence[str], others: Sequence[str]) -> str:
    """The names that are not among `others`, cut to a few for messages."""
    alone = [name for name in names if name not in others]
    more = f" and {len(alone) - _NAMED:,} more" if len(alone) > _NAMED else ""
    return (", ".join(alone[:_NAMED]) or "none") + more
