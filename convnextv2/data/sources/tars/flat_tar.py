"""One tar of images: unlabelled, or with a label file like ImageNet-1K's validation tar."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convnextv2.data.collection import UNLABELLED, DataError, Members, Stored
from convnextv2.data.sources.listing import (
    check_unchanged,
    hash_files,
    key_name,
    list_members,
)
from convnextv2.data.sources.passed_over import describe_kinds, images_among
from convnextv2.data.sources.tars.archive import Archive, Entry
from convnextv2.data.sources.tars.class_tars import open_tar_of_tars
from convnextv2.data.sources.tars.val_labels import find_val_labels, read_val_labels

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


@dataclass(frozen=True)
class FlatTar:
    """The images of a tar; `labels` is the file of their classes, if there is one."""

    path: Path
    classes: tuple[str, ...] = ()
    labels: Path | None = None
    has_splits: bool = False
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.path)]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        entries = image_entries(self.path, passed_over)
        synsets = self._synsets(entries)
        numbers = {synset: number for number, synset in enumerate(self.classes)}
        return list_members(
            (
                _key_name(entry, synsets),
                entry.start,
                entry.size,
                numbers[synsets[_base(entry)]] if synsets else UNLABELLED,
            )
            for entry in entries
        )

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        synsets = self._synsets(image_entries(self.path)) if self.labels else {}
        archive = Archive(self.path, str(self.path))
        with archive.open() as file:
            for member in members:
                entry = next(archive.entries(file, int(member["offset"])))
                name = f"{self.path}:{entry.name}"
                check_unchanged(name, _key_name(entry, synsets), int(member["key"]))
                yield Stored(name, archive.bytes_of(file, entry))

    def fingerprint(self) -> str:
        labels = self.labels.read_bytes().hex() if self.labels else ""
        return hash_files(self.path.parent, [self.path.name], self.classes, labels)

    def _synsets(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Class of each image by its file name; empty if the images are unlabelled."""
        if self.labels is None:
            return {}
        return read_val_labels(self.labels, [_base(entry) for entry in entries], self.classes)


def open_val_tar(path: Path, labels: Path | None, has_splits: bool) -> FlatTar:
    """Open ImageNet-1K's validation tar.

    Its classes are those of the train tar beside it or, if there is none, those of its own images.

    Raises:
        DataError: When its label file is missing, has no known format, or names a class that the
            train tar lacks.
    """
    labels = labels or find_val_labels(path)
    train = path.with_name(TRAIN_TAR)
    classes = open_tar_of_tars(train, has_splits).classes if train.exists() else ()
    names = [_base(entry) for entry in image_entries(path)]
    synsets = set(read_val_labels(labels, names, classes).values())
    if classes and (strange := synsets.difference(classes)):
        raise DataError(f"{labels} has class {min(strange)}, which {train} has not")
    return FlatTar(path, classes or tuple(sorted(synsets)), labels, has_splits)


def image_entries(path: Path, passed_over: Counter[str] | None = None) -> list[Entry]:
    """The images in a tar; other files are counted by kind in `passed_over`.

    Raises:
        DataError: When there are no images.
    """
    archive = Archive(path, str(path))
    kinds: Counter[str] = Counter()
    with archive.open() as file:
        entries = list(images_among(archive.entries(file, passed_over=kinds), kinds))
    if not entries:
        found = f"only {describe_kinds(kinds)}" if kinds else "nothing"
        raise DataError(f"{path} holds no images: {found}")
    if passed_over is not None:
        passed_over.update(kinds)
    return entries


def _base(entry: Entry) -> str:
    return PurePosixPath(entry.name).name


def _key_name(entry: Entry, synsets: dict[str, str]) -> str:
    name = _base(entry)
    return key_name(synsets[name], name) if synsets else entry.name.removeprefix("./")
