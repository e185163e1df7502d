"""The images below a folder; folders that are links are followed, each once."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from convnextv2.data.collection import DataError
from convnextv2.data.sources.leftovers import is_leftover
from convnextv2.data.sources.listing import is_image, printable
from convnextv2.data.sources.passed_over import kind_of


def walk(folder: Path, passed_over: Counter[str]) -> Iterator[str]:
    """Names, relative to `folder`, of the images at any depth below it, in no order.

    Links are followed after everything in `folder` itself, in the order of their names, so that
    which of two paths to the same images is taken does not depend on the file system. Links to a
    folder above them are named in `passed_over`; other files are counted there.

    Raises:
        DataError: When a folder cannot be listed.
    """
    read: set[str] = set()
    inside, links = [("", os.path.realpath(folder))], list[str]()
    while inside or links:
        if inside:
            below, real = inside.pop()
        else:
            below = links.pop(links.index(min(links)))
            real = os.path.realpath(folder / below)
        if real in read:
            passed_over["links to folders that are read already"] += 1
            continue
        read.add(real)
        for entry in _entries(folder / below):
            name = f"{below}/{entry.name}" if below else entry.name
            if is_folder(entry):
                if not entry.is_symlink():
                    inside.append((name, os.path.join(real, entry.name)))
                elif leads_upwards(Path(entry.path)):
                    passed_over[f"the link {printable(name)} to a folder above it"] += 1
                else:
                    links.append(name)
            elif not is_file(entry):
                passed_over["broken links and special files"] += 1
            elif is_image(entry.name):
                yield name
            else:
                passed_over[kind_of(entry.name)] += 1


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    # DirEntry's own answer costs no call to the system, but is an error for a link to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to one."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def leads_upwards(link: Path) -> bool:
    """Whether a link leads to a folder that it lies in: whoever follows it never ends."""
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_leftover(entry.name)]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error
