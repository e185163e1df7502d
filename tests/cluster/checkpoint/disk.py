"""A small file system of a test's own, which can be full, read-only, gone or stuck."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SECONDS = 60.0


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=SECONDS)


@dataclass
class Disk:
    """An ext4 in a file."""

    image: Path
    folder: Path

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def mount(self) -> None:
        run("mount", "-o", "loop", self.image, self.folder)

    def fill(self) -> None:
        full = pytest.raises(OSError, match=os.strerror(errno.ENOSPC))
        with self.ballast.open("wb", buffering=0) as file, full:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        self.ballast.unlink()

    def forbid(self) -> None:
        """Cover it by a read-only mount of the same: remounting fails while files are written."""
        run("mount", "--bind", self.folder, self.folder)
        run("mount", "-o", "remount,bind,ro", self.folder)

    def permit(self) -> None:
        run("umount", "--lazy", self.folder)

    def detach(self) -> None:
        run("umount", "--lazy", self.folder)

    def freeze(self) -> None:
        run("fsfreeze", "--freeze", self.folder)

    def thaw(self) -> None:
        run("fsfreeze", "--unfreeze", self.folder)


@contextlib.contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A disk of this size, mounted below a folder."""
    disk = Disk(folder / "image", folder / "mounted")
    disk.folder.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(megabytes << 20)
    run("mkfs.ext4", "-q", disk.image)
    disk.mount()
    try:
        yield disk
    finally:
        # It may be stuck, covered or gone already.
        unmount = ("umount", "--lazy")
        for words in (("fsfreeze", "--unfreeze"), unmount, unmount):
            subprocess.run([*words, disk.folder], check=False, stderr=subprocess.DEVNULL)
