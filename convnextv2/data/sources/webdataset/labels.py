"""Labels of WebDataset samples, and whether the texts beside images are labels or captions."""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from convnextv2.data.collection import UNLABELLED, DataError
from convnextv2.data.sources.tars.archive import Archive, Entry
from convnextv2.data.sources.webdataset.samples import samples_of

CLASS_NAMES = "classnames.txt"
JSON_LABELS, JSON_LABEL_PARTS = ("label", "class_id", "class", "cls"), ("index", "id", "name")
_LOOKED_AT = 1000


def read_label(name: str, content: bytes, numbers: Mapping[str, int]) -> int | None:
    """Read the label in a `.cls` or `.txt` (a number, or a name in `numbers`), or in a `.json`.

    In a `.json` it is the value of `label` (or `class_id`, `class`, `cls`), which may itself be an
    object with an `index`, `id` or `name`. A `.json` without such a value has no label: None.

    Raises:
        DataError: When the content is no label, or its number is beyond the class names.
    """
    told: int | str | None
    try:
        told = content.decode().strip()
        if name.lower().endswith(".json"):
            told = _json_label(json.loads(told))
            if told is None:
                return None
        label = numbers[told] if isinstance(told, str) and told in numbers else int(told)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has no label: a number, or a name in {CLASS_NAMES}") from error
    if label < UNLABELLED:
        raise DataError(f"{name} has label {label}; expected 0 or more, or -1 where there is none")
    if numbers and label >= len(numbers):
        raise DataError(
            f"{name} has label {label}, but {CLASS_NAMES} names only {len(numbers)} classes"
        )
    return label


def _json_label(told: object) -> int | str | None:
    if not isinstance(told, dict):
        raise TypeError(f"an object is expected, not {told!r}")
    key = next((key for key in JSON_LABELS if key in told), None)
    if key is None:
        return None
    found = told[key]
    if isinstance(found, dict):
        found = next((found[part] for part in JSON_LABEL_PARTS if part in found), None)
    if not isinstance(found, int | str):
        raise TypeError(f"a label is a number or a name, not {found!r}")
    return found


def look_at_texts(path: Path, classes: tuple[str, ...]) -> tuple[str | None, bool]:
    """Look at the texts at the head of a shard.

    Returns a caption, if one of the texts is no label, and whether there are texts and all are
    labels.
    """
    archive, labels = Archive(path, str(path)), 0
    with archive.open() as file:
        head = list(islice(archive.entries(file), _LOOKED_AT))
        for sample in samples_of(archive.name, head, Counter()):
            for entry in filter(is_text, sample.labels):
                text = archive.bytes_of(file, entry).decode(errors="replace").strip()
                if text not in classes and not text.removeprefix("-").isdecimal():
                    return text, False
                labels += 1
    return None, labels > 0


def is_text(entry: Entry) -> bool:
    """Whether the file is a text, which is a label only if all texts of its shards are."""
    return entry.name.lower().endswith(".txt")
