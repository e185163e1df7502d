"""WebDataset shards: tars in which `<key>.jpg` stands beside `<key>.cls` or `<key>.json`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from convnextv2.data.collection import UNLABELLED, DataError, Members, Split, Stored
from convnextv2.data.sources.listing import (
    check_unchanged,
    choose_split,
    hash_files,
    list_members,
)
from convnextv2.data.sources.tar import Archive, Entry

IMAGE_ENDS = ("jpg", "jpeg", "png", "webp")
LABEL_ENDS = ("cls", "json")
CLASS_NAMES = "classnames.txt"


@dataclass(frozen=True)
class WebDataset:
    """Shards in the folder `root`; without `classes` labels, if there are any, are numbers.

    Keys may be the same in two shards, so an image's key name has its shard's name in it.
    """

    root: Path
    shards: tuple[str, ...]
    classes: tuple[str, ...] = ()
    has_splits: bool = False

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / shard) for shard in self.shards]

    def members(self, part: int) -> Members:
        archive = self._archive(part)
        with archive.open() as file:
            return list_members(self._rows(part, archive, file))

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        archive = self._archive(part)
        with archive.open() as file:
            for member in members:
                entry = next(archive.entries(file, int(member["offset"])))
                name = f"{archive.name}:{entry.name}"
                check_unchanged(name, f"{self.shards[part]}/{entry.name}", int(member["key"]))
                yield Stored(name, archive.bytes_of(file, entry))

    def fingerprint(self) -> str:
        return hash_files(self.root, self.shards, self.classes)

    def _archive(self, part: int) -> Archive:
        path = self.root / self.shards[part]
        return Archive(path, str(path))

    def _rows(
        self, part: int, archive: Archive, file: BinaryIO
    ) -> Iterator[tuple[str, int, int, int]]:
        """One for each sample; its files follow each other."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for _, group in groupby(archive.entries(file), lambda entry: split_name(entry.name)[0]):
            files = {split_name(entry.name)[1]: entry for entry in group}
            image = next((files[end] for end in IMAGE_ENDS if end in files), None)
            if image is None:
                continue
            label = UNLABELLED
            for end in LABEL_ENDS:
                if end in files:
                    label = self._label(archive, file, files[end], numbers)
                    break
            yield f"{self.shards[part]}/{image.name}", image.start, image.size, label

    def _label(
        self, archive: Archive, file: BinaryIO, entry: Entry, numbers: dict[str, int]
    ) -> int:
        """The label in a `.cls` (a number or a class name) or `.json` ({"label": ...})."""
        content = archive.bytes_of(file, entry)
        try:
            told = content.decode().strip()
            if entry.name.lower().endswith(".json"):
                told = json.loads(told).get("label", UNLABELLED)
            label = numbers[told] if told in numbers else int(told)
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(
                f"{archive.name}:{entry.name} has no label: a number, or a name in {CLASS_NAMES}"
            ) from error
        if self.classes and label >= len(self.classes):
            raise DataError(
                f"{archive.name}:{entry.name} has label {label}, but {CLASS_NAMES} names only "
                f"{len(self.classes)} classes"
            )
        return label


def split_name(name: str) -> tuple[str, str]:
    """Key and (lower case) ending: what comes before and after the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    key, _, end = base.partition(".")
    return folder + slash + key, end.lower()


def open_webdataset(
    root: Path, shards: Sequence[str], split: Split, has_splits: bool
) -> WebDataset:
    """Open those of the shards in `root` that are of a split, by their names."""
    chosen, told = choose_split(root, shards, split)
    names = root / CLASS_NAMES
    classes = names.read_text().splitlines() if names.exists() else []
    return WebDataset(
        root, tuple(chosen), tuple(filter(None, map(str.strip, classes))), has_splits or told
    )
