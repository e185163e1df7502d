"""The disk that shards are written to: its free space, its errors, and one writer at a time."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convnextv2.data.collection import DataError
from convnextv2.durable import is_at, lock

LOCK = ".writing.lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The forecast is made from a few images and may be off by 10 or 20%. Where it is this close, shards
# are written nevertheless: finished ones are kept, and the same command continues from there.
SURELY = 0.8


def check_room(folder: Path, needed: float) -> None:
    """Raise DataError for what surely does not fit; `needed` is a forecast in bytes."""
    if SURELY * needed > shutil.disk_usage(folder).free:
        raise DataError(f"disk full: {_room(folder, needed)}")


@contextmanager
def refusals(path: Path, needed: float) -> Iterator[None]:
    """Turn errors of the disk while `path` is written, about `needed` bytes, into DataError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DataError(
                f"disk full ({error.strerror}) while writing {path}: {_room(path.parent, needed)}; "
                "what is finished is kept, the same command goes on from there"
            ) from error
        raise DataError(f"writing {path} failed: {error}") from error


def _room(folder: Path, needed: float) -> str:
    return (
        f"{folder} has {shutil.disk_usage(folder).free / 1e9:.3g} GB free, what is to be written "
        f"needs about {needed / 1e9:.3g} GB; free some room, or set max_resolution"
    )


@contextmanager
def alone(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Be the only process that writes to `folder`; the kernel releases the lock when it ends.

    The lock is on a file, not on the folder itself, because NFS can lock files only.

    Raises:
        DataError: When another process writes there.
    """
    path = folder / LOCK
    while True:
        with refusals(path, 0):
            file = path.open("a")
        with file:
            try:
                if not lock(file):
                    raise DataError(f"another process is writing to {folder}")
            except OSError as error:
                note(
                    f"{folder} has no file locks ({error.strerror}): make sure that only one "
                    "process writes there"
                )
            if not is_at(file.fileno(), path):  # Its owner removed it before we had it.
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
