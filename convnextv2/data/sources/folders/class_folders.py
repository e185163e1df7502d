"""Class folders: one folder per class, or one folder of unlabelled images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextv2.data.collection import UNLABELLED, DataError, Members, Stored
from convnextv2.data.sources.class_names import odd_classes
from convnextv2.data.sources.folders.walk import is_file, is_folder, leads_upwards, walk
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import (
    IMAGE_SUFFIXES,
    check_unchanged,
    hash_files,
    is_image,
    key_name,
    list_members,
    printable,
)
from convnextv2.data.sources.passed_over import class_without_images, describe_kinds


@dataclass(frozen=True)
class FolderSource:
    """The images below each of `folders` (names below `root`), whose names are the classes.

    Without classes the images below `root` itself are meant, and are unlabelled. A member's offset
    is its index among the sorted names of its folder.
    """

    root: Path
    classes: tuple[str, ...]
    has_splits: bool = False
    notes: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        return self.classes or (".",)

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / folder) for folder in self.folders]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        folder = self.root / self.folders[part]
        label = part if self.classes else UNLABELLED
        kinds: Counter[str] = Counter()
        names = image_names(folder, kinds)
        if self.classes and not names:
            raise class_without_images(str(folder), kinds)
        if passed_over is not None:
            passed_over.update(kinds)
        try:
            return list_members(
                (self._key_name(part, name), offset, (folder / name).stat().st_size, label)
                for offset, name in enumerate(names)
            )
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error}") from error

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        folder = self.root / self.folders[part]
        names = image_names(folder, Counter())
        for member in members:
            offset = int(member["offset"])
            if offset >= len(names):
                raise DataError(f"{folder} has lost images since it was listed")
            path = folder / names[offset]
            check_unchanged(str(path), self._key_name(part, names[offset]), int(member["key"]))
            try:
                yield Stored(printable(str(path)), path.read_bytes())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error

    def fingerprint(self) -> str:
        names = (
            f"{folder}/{name}"
            for folder in self.folders
            for name in image_names(self.root / folder, Counter())
        )
        return hash_files(self.root, names, self.classes)

    def _key_name(self, part: int, name: str) -> str:
        return printable(key_name(self.classes[part], name) if self.classes else name)


def open_folders(root: Path, has_splits: bool) -> FolderSource:
    """The class folders in `root`, in the order of their names; or the images in it, unlabelled.

    Raises:
        DataError: When there are neither, or both.
    """
    entries = [entry for entry in os.scandir(root) if not is_leftover(entry.name)]
    if not entries:
        raise DataError(f"data folder {root} is empty")
    folders = sorted(entry.name for entry in entries if is_folder(entry))
    links = {entry.name for entry in entries if entry.is_symlink()}
    endless = [name for name in folders if name in links and leads_upwards(root / name)]
    classes = tuple(name for name in folders if name not in endless)
    loose = next((entry.name for entry in entries if is_file(entry) and is_image(entry.name)), None)
    if classes and loose:
        raise DataError(
            f"{root} has class folders ({classes[0]}, ...) and images beside them ({loose}, ...): "
            "sort these into class folders, or move them away"
        )
    notes = tuple(f"{root / name} is a link to a folder above it: not read" for name in endless)
    if not loose and not any(has_images(root / name) for name in classes):
        raise _nothing_found(root)
    return FolderSource(root, classes, has_splits, (*notes, *odd_classes(root, classes)))


def image_names(folder: Path, passed_over: Counter[str]) -> list[str]:
    """Sorted names, relative to `folder`, of the images at any depth below it."""
    if not folder.is_dir():
        raise DataError(f"{folder} is gone since the source was opened")
    return sorted(walk(folder, passed_over))


def has_images(folder: Path) -> bool:
    return folder.is_dir() and next(walk(folder, Counter()), None) is not None


def _nothing_found(root: Path) -> DataError:
    there: Counter[str] = Counter()
    image_names(root, there)
    found = f"; there are {describe_kinds(there)}" if there else ""
    return DataError(
        f"no images under {root}{found}. Read are {' '.join(sorted(IMAGE_SUFFIXES))} in class "
        "folders or beside each other, tars of them, parquet files with images, and idx files"
    )
