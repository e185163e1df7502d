"""Class folders packed in one tar: `tar cf cats-and-dogs.tar cats-and-dogs`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnextv2.data.collection import Members, Split, Stored
from convnextv2.data.sources.class_names import odd_classes
from convnextv2.data.sources.listing import (
    SPLIT_NAMES,
    check_unchanged,
    hash_files,
    key_name,
    list_members,
    missing_split,
)
from convnextv2.data.sources.tars.archive import Archive
from convnextv2.data.sources.tars.flat_tar import FlatTar, image_entries

Steps = tuple[str, ...]


@dataclass(frozen=True)
class FolderTar:
    """The images of a tar in the folders below `above`; these folders are the classes."""

    path: Path
    above: Steps
    classes: tuple[str, ...]
    has_splits: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        return odd_classes(self.path, self.classes)

    @property
    def parts(self) -> Sequence[str]:
        return [str(self.path)]

    def members(self, part: int, passed_over: Counter[str] | None = None) -> Members:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return list_members(
            (self._key_name(entry.name), entry.start, entry.size, numbers[self._class(entry.name)])
            for entry in image_entries(self.path, passed_over)
            if _is_below(_steps(entry.name), self.above)
        )

    def read(self, part: int, members: Members) -> Iterator[Stored]:
        archive = Archive(self.path, str(self.path))
        with archive.open() as file:
            for member in members:
                entry = next(archive.entries(file, int(member["offset"])))
                name = f"{self.path}:{entry.name}"
                check_unchanged(name, self._key_name(entry.name), int(member["key"]))
                yield Stored(name, archive.bytes_of(file, entry))

    def fingerprint(self) -> str:
        return hash_files(self.path.parent, [self.path.name], self.above, self.classes)

    def _class(self, name: str) -> str:
        return _steps(name)[len(self.above)]

    def _key_name(self, name: str) -> str:
        below = _steps(name)[len(self.above) :]
        return key_name(below[0], "/".join(below)) if below else name


def open_single_tar(path: Path, split: Split, has_splits: bool) -> FolderTar | FlatTar:
    """Open a tar of images like the folder that was packed: class folders, or images alone.

    A folder that holds everything else (`cats-and-dogs/`) is not a class. Below it, there may be
    folders for the splits. Images that are all in one folder, or lie beside folders, are
    unlabelled.

    Raises:
        DataError: When the tar has no images, or has folders for other splits only.
    """
    folders = {_steps(entry.name)[:-1] for entry in image_entries(path)}
    above, names = _top(folders)
    split_folders = [name for known in SPLIT_NAMES.values() for name in known]
    if names and names <= set(split_folders):
        wanted = next((name for name in SPLIT_NAMES[split] if name in names), None)
        if wanted is None:
            raise missing_split(path, f"a folder {min(names)}", split)
        above, has_splits = (*above, wanted), True
        names = _names_below({steps for steps in folders if _is_below(steps, above)}, above)
    if not names:
        beside = len(folders) > 1
        return FlatTar(path, has_splits=has_splits, notes=_unlabelled(path) if beside else ())
    return FolderTar(path, above, tuple(sorted(names)), has_splits)


def _top(folders: set[Steps]) -> tuple[Steps, set[str]]:
    """The deepest folder that holds all images, and the names of the folders in it."""
    above: Steps = ()
    while len(names := _names_below(folders, above)) == 1:
        above = (*above, *names)
    return above, names


def _names_below(folders: set[Steps], above: Steps) -> set[str]:
    """Names of the folders in `above`; empty if images lie in `above` itself."""
    return set() if above in folders else {steps[len(above)] for steps in folders}


def _is_below(steps: Steps, above: Steps) -> bool:
    return steps[: len(above)] == above


def _steps(name: str) -> Steps:
    return tuple(step for step in name.split("/") if step not in ("", "."))


def _unlabelled(path: Path) -> tuple[str, ...]:
    return (f"{path} has images beside folders, so that no folder is a class: all are unlabelled",)
