"""WebDataset shards: tars in which `<key>.jpg` stands beside its label (`<key>.cls`, `.json`)."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from convnextv2.data.collection import UNLABELLED, DataError, Members, Split, Stored
from convnextv2.data.sources.listing import (
    check_unchanged,
    choose_split,
    hash_files,
    list_members,
)
from convnextv2.data.sources.samples import samples_of
from convnextv2.data.sources.tar import Archive, Entry

CLASS_NAMES = "classnames.txt"
JSON_LABELS, JSON_LABEL_PARTS = ("label", "class_id", "cls", "class"), ("index", "id", "name")
_LOOKED_AT = 1000


@dataclass(frozen=True)
class WebDataset:
    """Shards in the folder `root`; without `classes` labels, if there are any, are numbers.

    Keys may be the same in two shards, so an image's key name has its shard's name in it.
    `texts_are_labels` tells what `.txt` files are: classes, or captions, which are not read.
    """

    root: Path
    shards: tuple[str, ...]
    classes: tuple[str, ...] = ()
    has_splits: bool = False
    texts_are_labels: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / shard) for shard in self.shards]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        archive = self._archive(part)
        kinds: Counter[str] = Counter() if passed_over is None else passed_over
        with archive.open() as file:
            rows = sorted(self._rows(part, archive, file, kinds), key=lambda row: row[1])
        return list_members(rows)

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        archive = self._archive(part)
        with archive.open() as file:
            for member in members:
                entry = next(archive.entries(file, int(member["offset"])))
                name = f"{archive.name}:{entry.name}"
                check_unchanged(name, f"{self.shards[part]}/{entry.name}", int(member["key"]))
                yield Stored(name, archive.bytes_of(file, entry))

    def fingerprint(self) -> str:
        return hash_files(self.root, self.shards, self.classes, self.texts_are_labels)

    def _archive(self, part: int) -> Archive:
        path = self.root / self.shards[part]
        return Archive(path, str(path))

    def _rows(
        self, part: int, archive: Archive, file: BinaryIO, kinds: Counter[str]
    ) -> Iterator[tuple[str, int, int, int]]:
        """(key name, offset, size, label) of each sample."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for sample in samples_of(archive.name, archive.entries(file, passed_over=kinds), kinds):
            read = [e for e in sample.labels if self.texts_are_labels or not _is_text(e)]
            if len(read) < len(sample.labels):
                kinds[".txt"] += len(sample.labels) - len(read)
            found = (
                read_label(f"{archive.name}:{entry.name}", archive.bytes_of(file, entry), numbers)
                for entry in read
            )
            label = next((label for label in found if label is not None), UNLABELLED)
            image = sample.image
            yield f"{self.shards[part]}/{image.name}", image.start, image.size, label


def open_webdataset(
    root: Path,
    shards: Sequence[str],
    split: Split,
    has_splits: bool,
    notes: tuple[str, ...] = (),
) -> WebDataset:
    """Open those of the shards in `root` that are of a split, by their names.

    Text beside an image is a caption or a class. It is taken for classes if all that is found at
    the head of the first shard are numbers, or names that `classnames.txt` has.
    """
    chosen, told = choose_split(root, shards, split)
    names = root / CLASS_NAMES
    lines = names.read_text().splitlines() if names.exists() else []
    classes = tuple(filter(None, map(str.strip, lines)))
    caption, texts_are_labels = _look_at_texts(root / chosen[0], classes)
    if caption is not None:
        notes += (
            f"{root}: the .txt files are taken for captions, such as {caption[:40]!r}, and not "
            f"read; class names would be read if {CLASS_NAMES} listed them, one a line",
        )
    return WebDataset(root, tuple(chosen), classes, has_splits or told, texts_are_labels, notes)


def read_label(name: str, content: bytes, numbers: Mapping[str, int]) -> int | None:
    """The label in a `.cls` or `.txt` (a number, or a name in `numbers`), or in a `.json`.

    In a `.json` it is the value of `label` (or `class_id`, `class`, `cls`), which may itself be an
    object with an `index`, `id` or `name`; without such a value there is none.

    Raises:
        DataError: When that is no label, or beyond the names.
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


def _look_at_texts(path: Path, classes: tuple[str, ...]) -> tuple[str | None, bool]:
    """A caption among the texts at the head of a shard, if there is one; and if all are labels."""
    archive, labels = Archive(path, str(path)), 0
    with archive.open() as file:
        head = list(islice(archive.entries(file), _LOOKED_AT))
        for sample in samples_of(archive.name, head, Counter()):
            for entry in filter(_is_text, sample.labels):
                text = archive.bytes_of(file, entry).decode(errors="replace").strip()
                if text not in classes and not text.removeprefix("-").isdecimal():
                    return text, False
                labels += 1
    return None, labels > 0


def _is_text(entry: Entry) -> bool:
    return entry.name.lower().endswith(".txt")
