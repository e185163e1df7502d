"""Files that list images and labels: CSV, TSV, JSON, JSON lines, and lines of `path label`.

They are read into columns of text, one row per entry. A label that is a list in JSON stays JSON
text. `convnextv2.data.sources.lists.labels` decides what the columns mean.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from convnextv2.data.collection import DataError
from convnextv2.data.sources.listing import is_image

LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
METADATA = ("metadata.csv", "metadata.jsonl")
"""Lists that image folders of Hugging Face `datasets` have beside their images."""
PATH, LABEL = "file_name", "label"
"""Column names for formats that do not name their columns."""


def read_list(path: Path) -> pa.Table:
    """Read the rows of a list, with all columns as text.

    Raises:
        DataError: When the file cannot be read in the format that its suffix names.
    """
    try:
        if path.suffix in (".csv", ".tsv"):
            return _read_csv(path)
        if path.suffix == ".txt":
            return _read_lines(path)
        return _table(path, _read_json(path))
    except (OSError, UnicodeDecodeError, pa.ArrowException, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    delimiter = max("\t,;", key=first.count) if path.suffix == ".csv" else "\t"
    names = next(csv.reader([first], delimiter=delimiter), [])
    if not names:
        raise DataError(f"{path} is empty")
    # A file without a header starts with an image.
    headless = any(is_image(name) for name in names)
    if headless:
        names = [PATH, LABEL, *(f"column {n}" for n in range(3, len(names) + 1))][: len(names)]
    return pa.csv.read_csv(
        path,
        pa.csv.ReadOptions(column_names=names, skip_rows=0 if headless else 1),
        pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _read_lines(path: Path) -> pa.Table:
    """Lines of `path label`: the path ends with the first word that is an image's name."""
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = re.split(r"(\s+)", line.strip())
        if words == [""]:
            continue
        end = next((position for position, word in enumerate(words) if is_image(word)), None)
        if end is None:
            raise DataError(f"{path}, line {number}: {line[:80]!r} names no image, as `x.jpg 3`")
        paths.append("".join(words[: end + 1]))
        labels.append("".join(words[end + 1 :]).strip())
    columns = {PATH: pa.array(paths, pa.string())}
    return pa.table({**columns, LABEL: pa.array(labels, pa.string())} if any(labels) else columns)


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    """Rows of JSON lines, a list of objects, an object {path: label}, or COCO's annotations."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix != ".json":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    content = json.loads(text)
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
        return _coco(content)
    if isinstance(content, dict):
        return [{PATH: name, LABEL: label} for name, label in content.items()]
    return list(content) if isinstance(content, list) else []


def _coco(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Images with the names of their annotations' categories."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    found: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].add(names[annotation["category_id"]])
    return [
        {PATH: image["file_name"], LABEL: sorted(found[image["id"]])} for image in content["images"]
    ]


def _table(path: Path, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    columns: dict[str, list[str]] = {}
    number = -1
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{path}, entry {number + 1}: expected an object, as {{{PATH!r}: …}}")
        for name, value in row.items():
            column = columns.setdefault(str(name), [])
            column += [""] * (number - len(column))
            column.append(_text(value))
    for column in columns.values():
        column += [""] * (number + 1 - len(column))
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
