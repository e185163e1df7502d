"""What the layouts share: what is an image, which split a name tells, how a part is listed."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from posixpath import splitext

import numpy as np

from convnextv2.data.collection import MEMBER, DataError, Members, Split, name_key
from convnextv2.data.sources.leftovers import is_leftover

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".npy",
}  # fmt: skip
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}
_LARGEST = np.iinfo(MEMBER["size"]).max


def is_image(path: str) -> bool:
    """By its suffix, in either case; what systems leave is none."""
    return splitext(path)[1].lower() in IMAGE_SUFFIXES and not is_leftover(path)


def printable(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become backslash escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def key_name(class_name: str, path: str) -> str:
    """Name that an image has however its collection is packed: `<class>/<path below the class>`.

    What stands before the class in `path` does not count: `x.jpg` in `cat.tar`, `cat/x.jpg` in
    `cat.tar` and the file `train/cat/x.jpg` are all `cat/x.jpg`.
    """
    steps = [step for step in path.split("/") if step not in ("", ".")]
    if class_name in steps[:-1]:
        steps = steps[steps.index(class_name) + 1 :]
    return "/".join([class_name, *steps])


def list_members(rows: Iterable[tuple[str, int, int, int]]) -> Members:
    """Gather (key name, offset, size, label) of images, holding 24 bytes of each."""
    return np.fromiter(
        ((_key(name, size), o, size, label) for name, o, size, label in rows), MEMBER
    )


def _key(name: str, size: int) -> int:
    if size > _LARGEST:
        raise DataError(f"{name} has {size:,} bytes: no image, remove it")
    return name_key(name)


def check_unchanged(name: str, key_name: str, key: int) -> None:
    """Raise DataError when another image lies where the listing saw one."""
    if name_key(key_name) != key:
        raise DataError(f"{name} was not there when its part was listed: the source has changed")


def choose_split(where: Path, names: Sequence[str], split: Split) -> tuple[list[str], bool]:
    """Which of the files are the split's, by words of their names, and whether any tell a split.

    Where a file's own name tells none, that of its folder does: `default/train/0000.parquet`.

    Raises:
        DataError: When names tell other splits only.
    """
    words = {name: _split_words(name) for name in names}
    for word in SPLIT_NAMES[split]:
        if chosen := [name for name in names if word in words[name]]:
            return chosen, True
    if any(words.values()):
        raise missing_split(where, f"files of another split, such as {names[0]},", split)
    return list(names), False


def missing_split(where: Path, there: str, split: Split) -> DataError:
    """The error for a collection that has files or folders of other splits alone."""
    told = f"{where} has {there} but none for {split!r}; names for it are "
    told += ", ".join(SPLIT_NAMES[split])
    if split == "val":
        told += ". --val-fraction (data.val_fraction) takes a share of the training images instead"
    return DataError(told)


def _split_words(name: str) -> set[str]:
    path = PurePosixPath(name)
    return split_words(path.name) or split_words(path.parent.name)


def split_words(step: str) -> set[str]:
    """The words for splits in the name of a file or folder: `{"test"}` of `test-00000.parquet`."""
    every = {word for known in SPLIT_NAMES.values() for word in known}
    return every.intersection(re.split(r"[^a-z]+", step.lower()))


def hash_files(root: Path, names: Iterable[str], *more: object) -> str:
    """Hash of the names and sizes of files under `root`, and of what else is given."""
    try:
        sizes = [[name, (root / name).stat().st_size] for name in names]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error}") from error
    return hashlib.sha256(json.dumps([sizes, more]).encode()).hexdigest()
