"""Class folders: one folder per class, or one folder of unlabelled images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextv2.data.collection import UNLABELLED, DataError, Members, Stored
from convnextv2.data.sources.listing import (
    IMAGE_SUFFIXES,
    check_unchanged,
    hash_files,
    is_image,
    key_name,
    list_members,
    printable,
)


@dataclass(frozen=True)
class FolderSource:
    """The images below each of `folders` (names below `root`), whose names are the classes.

    Without classes the images below `root` itself are meant, and are unlabelled. A member's offset
    is its place among the sorted names of its folder.
    """

    root: Path
    classes: tuple[str, ...]
    has_splits: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        return self.classes or (".",)

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.root / folder) for folder in self.folders]

    def members(self, part: int) -> Members:
        folder = self.root / self.folders[part]
        label = part if self.classes else UNLABELLED
        names = image_names(folder)
        try:
            return list_members(
                (self._key_name(part, name), place, (folder / name).stat().st_size, label)
                for place, name in enumerate(names)
            )
        except OSError as error:
            raise DataError(f"{folder} cannot be listed: {error}") from error

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        folder = self.root / self.folders[part]
        names = image_names(folder)
        for member in members:
            place = int(member["offset"])
            if place >= len(names):
                raise DataError(f"{folder} has lost images since it was listed")
            path = folder / names[place]
            check_unchanged(str(path), self._key_name(part, names[place]), int(member["key"]))
            try:
                yield Stored(printable(str(path)), path.read_bytes())
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error}") from error

    def fingerprint(self) -> str:
        names = (
            f"{folder}/{name}"
            for folder in self.folders
            for name in image_names(self.root / folder)
        )
        return hash_files(self.root, names, self.classes)

    def _key_name(self, part: int, name: str) -> str:
        return printable(key_name(self.classes[part], name) if self.classes else name)


def open_folders(root: Path, has_splits: bool) -> FolderSource:
    """The class folders in `root`, in the order of their names; or the images in it, unlabelled.

    Raises:
        DataError: When there are neither, or both.
    """
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    if not entries:
        raise DataError(f"data folder {root} is empty")
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    loose = next(
        (entry.name for entry in entries if entry.is_file() and is_image(entry.name)), None
    )
    if folders and loose:
        raise DataError(
            f"{root} has class folders ({folders[0]}, ...) and images beside them ({loose}, ...): "
            "sort these into class folders, or move them away"
        )
    if not loose and not any(has_images(root / folder) for folder in folders):
        raise DataError(
            f"no images under {root}; read are {', '.join(sorted(IMAGE_SUFFIXES))} in class "
            "folders or beside each other, tars of them, parquet files with a column 'image', and "
            "idx files"
        )
    return FolderSource(root, tuple(folders), has_splits)


def image_names(folder: Path) -> list[str]:
    """Sorted names, relative to `folder`, of the images at any depth below it."""
    if not folder.is_dir():
        raise DataError(f"{folder} is gone since the source was opened")
    return sorted(_walk(folder))


def has_images(folder: Path) -> bool:
    return next(_walk(folder), None) is not None


def _walk(folder: Path) -> Iterator[str]:
    for below, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if Path(below) == folder else f"{Path(below).relative_to(folder)}/"
        for name in files:
            if is_image(name) and os.path.isfile(os.path.join(below, name)):
                yield prefix + name
