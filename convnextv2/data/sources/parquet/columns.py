"""Which columns of a parquet file hold the images and their labels."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from convnextv2.data.collection import DataError
from convnextv2.data.sources.parquet.arrays import dimensions, has_whole_numbers

_IMAGE_NAMES = ("img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABEL_WORDS = {"label", "labels", "class", "cls", "target", "category"}
_SETTINGS = {"image": "--image-column (data.image_column)",
             "label": "--label-column (data.label_column)"}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns of images and of labels; None stands for the one that `choose_columns` finds.

    With `multi_label`, an image may have several labels; only list files (CSV, JSON, ...) have
    them.
    """

    image: str | None = None
    label: str | None = None
    multi_label: bool = False


def choose_columns(path: Path, schema: pa.Schema, wanted: Columns) -> Columns:
    """Choose the columns of a file to read; without a label column, images are unlabelled.

    The image column is `image`, or else the only column that `datasets` marks as images, that has a
    usual name, that holds bytes, that `datasets` marks as arrays, or that holds three-dimensional
    arrays of whole numbers, tried in this order. The label column is `label`, or else the only
    column that `datasets` marks as class labels, or that has a word such as `class` or `target` in
    its name.

    Raises:
        DataError: When there is no image column, or several columns fit; the message lists the
            columns.
    """
    features = features_of(schema)
    files = [field.name for field in schema if is_image_type(field.type)]
    arrays = [field.name for field in schema if dimensions(field.type) in (2, 3)]
    # Other arrays may be boxes, outlines or features.
    pictures = [name for name in arrays if _is_picture(schema.field(name).type)]
    labels = [field.name for field in schema if _is_label_type(field.type)]
    image = _only(
        path, schema, "image", wanted.image, [*files, *arrays],
        [["image"], _of_kind(features, "Image"), _IMAGE_NAMES, files,
         _of_kind(features, "Array2D", "Array3D"), pictures],
    )  # fmt: skip
    if image is None:
        raise DataError(
            f"{path} has columns {described(schema)}; expected image (the bytes of image files, a "
            "struct with a field bytes, or arrays of numbers); "
            f"{_SETTINGS['image']} names another{_about_flat_lists(schema)}"
        )
    named = [name for name in labels if _LABEL_WORDS & set(re.split(r"[^a-z]+", name.lower()))]
    if wanted.label is None and "label" in schema.names and "label" not in labels:
        raise DataError(
            f"{path} has columns {described(schema)}; expected label to be numbers or names; "
            f"{_SETTINGS['label']} names another column"
        )
    label = _only(
        path, schema, "label", wanted.label, labels,
        [["label"], _of_kind(features, "ClassLabel"), named],
    )  # fmt: skip
    return Columns(image, label)


def is_image_type(kind: pa.DataType) -> bool:
    """Whether values are bytes, structs with a field `bytes`, or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image_type(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _only(
    path: Path,
    schema: pa.Schema,
    what: str,
    wanted: str | None,
    usable: Sequence[str],
    choices: Iterable[Sequence[str]],
) -> str | None:
    """The wanted column, or else the only usable one among the first choices that match any."""
    if wanted is not None:
        if wanted in usable:
            return wanted
        raise DataError(
            f"{path} has no column {wanted} of {what}s, which {_SETTINGS[what]} asks for; its "
            f"columns are {described(schema)}{_about_flat_lists(schema, wanted)}"
        )
    for names in choices:
        found = [name for name in usable if name in names]
        if len(found) > 1:
            raise DataError(
                f"{path}: {' and '.join(found)} may be the {what}s, of its columns "
                f"{described(schema)}: choose one by {_SETTINGS[what]}"
            )
        if found:
            return found[0]
    return None


def features_of(schema: pa.Schema) -> dict[str, dict[str, object]]:
    """What the library `datasets` stores about its columns in the schema."""
    told = (schema.metadata or {}).get(b"huggingface")
    about = json.loads(told) if told else {}
    return about.get("info", {}).get("features", {}) or {}


def _of_kind(features: Mapping[str, dict[str, object]], *kinds: str) -> list[str]:
    return [name for name, about in features.items()
            if isinstance(about, dict) and about.get("_type") in kinds]  # fmt: skip


def _is_picture(kind: pa.DataType) -> bool:
    return dimensions(kind) == 3 and has_whole_numbers(kind)


def _about_flat_lists(schema: pa.Schema, wanted: str | None = None) -> str:
    """The end of an error message: why columns of flat lists are no images; may be empty."""
    flat = [field.name for field in schema
            if dimensions(field.type) == 1 and wanted in (None, field.name)]  # fmt: skip
    if not flat:
        return ""
    return (
        f". The lists of numbers in {' and '.join(flat)} have no shape; lists of lists (rows of "
        "pixels of channels), Arrow's fixed_shape_tensor or the bytes of .npy files would work"
    )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, also if they are dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_label_type(kind: pa.DataType) -> bool:
    types, plain = pa.types, plain_type(kind)
    tests = (
        types.is_integer,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_null,
    )
    return any(test(plain) for test in tests)


def described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
