"""One tar per class, in a folder or inside one tar: ImageNet-22K and ImageNet-1K as distributed."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convnextv2.data.collection import DataError, Members, Stored
from convnextv2.data.sources.class_names import odd_classes
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import (
    check_unchanged,
    hash_files,
    key_name,
    list_members,
)
from convnextv2.data.sources.passed_over import class_without_images, images_among
from convnextv2.data.sources.tars.archive import Archive


@dataclass(frozen=True)
class ClassTars:
    """Tars `<class>.tar` in the folder `root` or, if there are `spans`, inside the tar `root`.

    `spans` are where each class tar begins and ends in `root`. A member's offset is that of its
    header in the file on disk.
    """

    root: Path
    classes: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] = ()
    has_splits: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        return odd_classes(self.root, self.classes)

    @property
    def parts(self) -> Sequence[str]:
        return [self._name(part) for part in range(len(self.classes))]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        archive, name = self._archive(part), self.classes[part]
        kinds: Counter[str] = Counter()
        with archive.open() as file:
            members = list_members(
                (key_name(name, entry.name), entry.start, entry.size, part)
                for entry in images_among(archive.entries(file, passed_over=kinds), kinds)
            )
        if not len(members):
            raise class_without_images(archive.name, kinds)
        if passed_over is not None:
            passed_over.update(kinds)
        return members

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        archive = self._archive(part)
        with archive.open() as file:
            for member in members:
                entry = next(archive.entries(file, int(member["offset"])))
                name = f"{archive.name}:{entry.name}"
                check_unchanged(name, key_name(self.classes[part], entry.name), int(member["key"]))
                yield Stored(name, archive.bytes_of(file, entry))

    def fingerprint(self) -> str:
        if self.spans:
            return hash_files(self.root.parent, [self.root.name], self.classes, self.spans)
        return hash_files(self.root, (f"{name}.tar" for name in self.classes))

    def _archive(self, part: int) -> Archive:
        name = self._name(part)
        if self.spans:
            return Archive(self.root, name, *self.spans[part])
        return Archive(Path(name), name)

    def _name(self, part: int) -> str:
        return f"{self.root}{':' if self.spans else '/'}{self.classes[part]}.tar"


def open_tar_of_tars(path: Path, has_splits: bool) -> ClassTars:
    """Find the class tars inside the tar at `path`.

    Raises:
        DataError: When two of them are of one class.
    """
    archive = Archive(path, str(path))
    spans: dict[str, tuple[int, int]] = {}
    with archive.open() as file:
        for entry in archive.entries(file):
            name = PurePosixPath(entry.name)
            if name.suffix != ".tar" or is_leftover(entry.name):
                continue
            if name.stem in spans:
                raise DataError(f"{path} holds {name.name} twice")
            spans[name.stem] = (entry.offset, entry.offset + entry.size)
    classes = tuple(sorted(spans))
    return ClassTars(path, classes, tuple(spans[name] for name in classes), has_splits)
