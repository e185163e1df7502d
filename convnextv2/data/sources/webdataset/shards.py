"""WebDataset shards: tars in which `<key>.jpg` stands beside its label (`<key>.cls`, `.json`)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from convnextv2.data.collection import UNLABELLED, Members, Split, Stored
from convnextv2.data.sources.listing import (
    check_unchanged,
    choose_split,
    hash_files,
    list_members,
)
from convnextv2.data.sources.tars.archive import Archive
from convnextv2.data.sources.webdataset.labels import (
    CLASS_NAMES,
    is_text,
    look_at_texts,
    read_label,
)
from convnextv2.data.sources.webdataset.samples import samples_of


@dataclass(frozen=True)
class WebDataset:
    """Shards in the folder `root`. Without `classes`, labels (if there are any) are numbers.

    Two shards may use the same keys, so an image's key name contains the name of its shard.
    `texts_are_labels` says whether `.txt` files hold labels; if not, they are captions and not
    read.
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
            read = [e for e in sample.labels if self.texts_are_labels or not is_text(e)]
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
    """Open the shards in `root` whose names say that they belong to a split.

    A text beside an image is a caption or a class. Texts are taken as classes if all texts at the
    head of the first shard are numbers or names listed in `classnames.txt`.
    """
    chosen, told = choose_split(root, shards, split)
    names = root / CLASS_NAMES
    lines = names.read_text().splitlines() if names.exists() else []
    classes = tuple(filter(None, map(str.strip, lines)))
    caption, texts_are_labels = look_at_texts(root / chosen[0], classes)
    if caption is not None:
        notes += (
            f"{root}: the .txt files are taken for captions, such as {caption[:40]!r}, and not "
            f"read; class names would be read if {CLASS_NAMES} listed them, one a line",
        )
    return WebDataset(root, tuple(chosen), classes, has_splits or told, texts_are_labels, notes)
