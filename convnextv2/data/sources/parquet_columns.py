"""Which columns of a parquet file hold the images and their labels, and what the labels mean."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from convnextv2.data.collection import UNLABELLED, DataError

_IMAGE_NAMES = ("img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABEL_WORDS = {"label", "labels", "class", "cls", "target", "category"}
_NAMED = 5
_SETTINGS = {"image": "--image-column (data.image_column)",
             "label": "--label-column (data.label_column)"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns with the images and with their labels; where it is None, the one that fits."""

    image: str | None = None
    label: str | None = None


def choose_columns(path: Path, schema: pa.Schema, wanted: Columns) -> Columns:
    """The columns of a file to be read; without a label column the images are unlabelled.

    Images are in `image`; or the one column that `datasets` knows as images; or that has a usual
    name; or the one with bytes. Labels are in `label`; or the one column of class labels; or the
    one with such a word in its name.

    Raises:
        DataError: When there are no images, or several columns could be meant; all are listed.
    """
    features = _features(schema)
    images = [field.name for field in schema if is_image_type(field.type)]
    labels = [field.name for field in schema if _is_label_type(field.type)]
    image = _only(
        path, schema, "image", wanted.image, images,
        [["image"], _of_kind(features, "Image"), _IMAGE_NAMES, images],
    )  # fmt: skip
    if image is None:
        raise DataError(
            f"{path} has columns {_describe(schema)}; expected image (the bytes of image files, or "
            f"a struct with a field bytes); {_SETTINGS['image']} names another"
        )
    named = [name for name in labels if _LABEL_WORDS & set(re.split(r"[^a-z]+", name.lower()))]
    if wanted.label is None and "label" in schema.names and "label" not in labels:
        raise DataError(
            f"{path} has columns {_describe(schema)}; expected label to be numbers or names; "
            f"{_SETTINGS['label']} names another column"
        )
    label = _only(
        path, schema, "label", wanted.label, labels,
        [["label"], _of_kind(features, "ClassLabel"), named],
    )  # fmt: skip
    return Columns(image, label)


def is_image_type(kind: pa.DataType) -> bool:
    """Bytes, a struct with a field `bytes`, or a list of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image_type(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Names that the library `datasets` keeps in the schema."""
    about = _features(schema).get(label or "", {})
    names = about.get("names") if isinstance(about, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def find_classes(
    paths: Sequence[Path], open_file: Callable[[Path], pq.ParquetFile], label: str
) -> tuple[str, ...]:
    """The classes of files that belong together; labels that are no numbers are sorted names.

    Raises:
        DataError: When one file names classes that others do not.
    """
    first: tuple[Path, tuple[str, ...]] | None = None
    values: set[str] = set()
    for path in paths:
        with open_file(path) as file:
            schema = file.schema_arrow
            if label not in schema.names:
                raise DataError(f"{path} has no column {label}, only {_describe(schema)}")
            if not pa.types.is_integer(_plain(schema.field(label).type)):
                column = file.read(columns=[label]).column(0).unique()
                values.update(str(value) for value in column.to_pylist() if _is_told(value))
        if names := class_names(schema, label):
            first = first or (path, names)
            if set(first[1]) != set(names):
                raise DataError(
                    f"{first[0]} and {path} name other classes: {_alone(first[1], names)} against "
                    f"{_alone(names, first[1])}. Files of one collection have the same, in any "
                    "order"
                )
    return first[1] if first and not values else tuple(sorted(values))


def label_numbers(
    where: Path, row: int, column: pa.ChunkedArray, names: Sequence[str], numbers: Mapping[str, int]
) -> list[int]:
    """Labels of the rows from `row` on, by the names of the file or by its values.

    Raises:
        DataError: When one is beyond the names.
    """
    renumbered = [numbers[name] for name in names] or list(range(len(numbers)))
    found = []
    for place, value in enumerate(column.to_pylist(), row):
        if not _is_told(value):
            found.append(UNLABELLED)
        elif not isinstance(value, int) or isinstance(value, bool):
            if str(value) not in numbers:
                raise DataError(f"{where}: row {place:,} has label {value}: the file has changed")
            found.append(numbers[str(value)])
        elif renumbered and UNLABELLED <= value < len(renumbered):
            found.append(UNLABELLED if value == UNLABELLED else renumbered[value])
        elif not renumbered and value >= UNLABELLED:
            found.append(value)
        else:
            expected = f"0 to {len(renumbered) - 1}, as it names {len(renumbered)} classes"
            raise DataError(
                f"{where}: row {place:,} has label {value}; expected "
                f"{expected if renumbered else '0 or more'}, or {UNLABELLED} where there is none"
            )
    return found


def _only(
    path: Path,
    schema: pa.Schema,
    what: str,
    wanted: str | None,
    usable: Sequence[str],
    choices: Iterable[Sequence[str]],
) -> str | None:
    """The wanted column or, of the first choices that are there, the only one."""
    if wanted is not None:
        if wanted in usable:
            return wanted
        raise DataError(
            f"{path} has no column {wanted} of {what}s, which {_SETTINGS[what]} asks for; its "
            f"columns are {_describe(schema)}"
        )
    for names in choices:
        found = [name for name in usable if name in names]
        if len(found) > 1:
            raise DataError(
                f"{path}: {' and '.join(found)} may be the {what}s, of its columns "
                f"{_describe(schema)}: choose one by {_SETTINGS[what]}"
            )
        if found:
            return found[0]
    return None


def _features(schema: pa.Schema) -> dict[str, dict[str, object]]:
    """What the library `datasets` keeps in the schema about its columns."""
    told = (schema.metadata or {}).get(b"huggingface")
    about = json.loads(told) if told else {}
    return about.get("info", {}).get("features", {}) or {}


def _of_kind(features: Mapping[str, dict[str, object]], kind: str) -> list[str]:
    return [name for name, about in features.items()
            if isinstance(about, dict) and about.get("_type") == kind]  # fmt: skip


def _is_label_type(kind: pa.DataType) -> bool:
    plain = _plain(kind)
    types = pa.types
    tests = (
        types.is_integer,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_null,
    )
    return any(test(plain) for test in tests)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_told(value: object) -> bool:
    return value is not None and value != ""


def _alone(names: Sequence[str], others: Sequence[str]) -> str:
    """The names that the others lack."""
    alone = [name for name in names if name not in others]
    more = f" and {len(alone) - _NAMED:,} more" if len(alone) > _NAMED else ""
    return (", ".join(alone[:_NAMED]) or "none") + more


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
