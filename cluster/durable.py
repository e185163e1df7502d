"""Files and folders that are still there after a power cut."""

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHUNK = 16 << 20
# What file systems answer that cannot sync a folder; they keep names safe in their own way.
_NO_SUCH_OPERATION = {errno.EINVAL, errno.ENOTSUP}


@dataclass(frozen=True)
class FileDigest:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def write(path: Path, parts: Iterable[bytes | memoryview]) -> FileDigest:
    """Write and fsync a file, hashing on the way; other threads run meanwhile."""
    digest, total = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for part in parts:
            content = memoryview(part)
            while content:
                written = os.write(file.fileno(), content[:CHUNK])
                digest.update(content[:written])
                content, total = content[written:], total + written
        os.fsync(file.fileno())
    return FileDigest(total, digest.hexdigest())


def append_line(path: Path, line: str) -> None:
    """Append a line to a file of lines; a last one that a full disk cut off is dropped before."""
    with path.open("ab+") as file:
        size = file.tell()
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line.encode() + b"\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_OPERATION:
            raise
    finally:
        os.close(descriptor)
