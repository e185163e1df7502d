"""Files and folders that are there whole or not at all, also after a power cut; locks on files."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from convnextv2 import PathLike

# Errors of file systems that cannot sync a folder; they keep names safe in their own way.
_NO_SUCH_OPERATION = {errno.EINVAL, errno.ENOTSUP}


class HasDescriptor(Protocol):
    """An open file."""

    def fileno(self) -> int: ...


@contextmanager
def atomically(destination: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `destination` for a file or a folder, then move it there.

    The content is on disk before it gets its name, and the name is on disk when this returns. After
    an exception, `destination` is as it was before.
    """
    destination = Path(destination)
    partial = destination.with_name(f".{destination.name}.partial")
    _remove(partial)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync(path)
        os.replace(partial, destination)
        sync(destination.parent)
    finally:
        _remove(partial)


def write_json(path: PathLike, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with atomically(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def sync(path: PathLike) -> None:
    """Flush a file's content, or the names in a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_OPERATION or not Path(path).is_dir():
            raise
    finally:
        os.close(descriptor)


def lock(file: int | HasDescriptor) -> bool:
    """Take a file's exclusive lock unless another process has a lock on it; return whether it did.

    The kernel releases the lock when the process ends.

    Raises:
        OSError: Where the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_shared(file: int | HasDescriptor) -> None:
    """Take a file's shared lock; waits while another process has the exclusive one."""
    fcntl.flock(file, fcntl.LOCK_SH)


def is_at(descriptor: int, path: PathLike) -> bool:
    """Whether an open file is still the one at `path`; another process may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
