"""A node's own copy of shards that lie on slow or distant storage.

Entries are named by the shard's sha256, so that a changed shard is never served from an old copy,
and data sets that share shards share copies. One process of a node copies. It holds a lock, which
the kernel releases when it dies, so that another one takes over. All processes read the originals
until the copies have arrived. Entries in use have a shared lock and are never evicted.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from convnextv2 import PathLike
from convnextv2.data.collection import DataError
from convnextv2.data.shards.manifest import Manifest, Shard, read_manifest
from convnextv2.durable import is_at, lock, lock_shared, sync

CHUNK = 8 << 20
POLL_SECONDS = 1.0
ATTEMPTS = 2

log = logging.getLogger(__name__)


class LocalCache:
    """Copies the shards of `folder` to `directory` while they are used.

    Args:
        folder: Shards and their manifest.
        directory: On the node's own disk; shared by its processes and by runs.
        max_bytes: Most bytes of all entries together; least recently used ones are evicted. None:
            as much as the disk has.

    Attributes:
        arrived: Number of shards whose copy is there; looked at between batches.
        error: The first error because of which some shards are not copied; they are read from the
            originals. All errors are logged as warnings.

    Raises:
        DataError: When the directory cannot be used, or the folder is not complete.
    """

    def __init__(self, folder: PathLike, directory: PathLike, max_bytes: int | None = None) -> None:
        self.folder, self.directory, self.max_bytes = Path(folder), Path(directory), max_bytes
        self.manifest: Manifest = read_manifest(folder)
        self.arrived = 0
        self.error: Exception | None = None
        self._used: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local-cache", daemon=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._look()
        except OSError as error:
            raise DataError(f"cache {directory} cannot be used: {error}") from error

    def start(self) -> "LocalCache":
        """Begin to copy, in a thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop copying and unlock the entries; a partial copy is continued another time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in self._used.values():
            _touch(descriptor)
            os.close(descriptor)
        self._used.clear()

    def path(self, number: int) -> Path:
        """The copy of shard `number` if it has arrived, else the original."""
        shard = self.manifest.shards[number]
        return self._entry(shard) if number in self._used else self.folder / shard.name

    def _entry(self, shard: Shard) -> Path:
        return self.directory / f"{shard.sha256}.beton"

    def _look(self) -> None:
        """Take the copies that are there into use."""
        for number, shard in enumerate(self.manifest.shards):
            if number in self._used:
                continue
            entry = self._entry(shard)
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(entry, os.O_RDONLY)
                lock_shared(descriptor)
                # It may have been evicted between the two calls, or truncated by something else.
                if not is_at(descriptor, entry) or os.fstat(descriptor).st_size != shard.bytes:
                    os.close(descriptor)
                    continue
                _touch(descriptor)
                self._used[number] = descriptor
        self.arrived = len(self._used)

    def _run(self) -> None:
        try:
            # Lowest priority (Linux has one for each thread), so that decoding comes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            while not self._stop.is_set():
                self._look()
                if self.arrived == len(self.manifest.shards):
                    return
                with self._writer_lock() as mine:
                    if mine:
                        self._copy_missing()
                        return
                self._stop.wait(POLL_SECONDS)
        except Exception as error:
            self._report(error, f"what has not arrived is read from {self.folder}")

    def _report(self, error: Exception, consequence: str) -> None:
        self.error = self.error or error
        log.warning("local cache: %s; %s", error, consequence)

    @contextlib.contextmanager
    def _writer_lock(self) -> Iterator[bool]:
        with (self.directory / ".lock").open("a") as file:
            yield lock(file)

    def _copy_missing(self) -> None:
        self._look()
        for number, shard in enumerate(self.manifest.shards):
            if number in self._used:
                continue
            if self._refused(shard) or not self._fetch(shard):
                problem = (
                    f"{self.folder / shard.name} is not what its manifest says; see convnextv2 "
                    f"data verify {self.folder}"
                )
                self._report(DataError(problem), "it is read from there, the others are copied")
            if self._stop.is_set():
                return
            self._look()

    def _fetch(self, shard: Shard) -> bool:
        """Copy a shard; False when its bytes are wrong, which is noted for other processes."""
        self._make_room(shard)
        for _ in range(ATTEMPTS):
            if self._copy(shard) or self._stop.is_set():
                return True
        self._note(shard).write_text(self._original(shard))
        return False

    def _refused(self, shard: Shard) -> bool:
        """Whether this very original was found wrong before, to save reading it again."""
        note = self._note(shard)
        return note.exists() and note.read_text() == self._original(shard)

    def _note(self, shard: Shard) -> Path:
        return self.directory / f".{shard.sha256}.refused"

    def _original(self, shard: Shard) -> str:
        path = self.folder / shard.name
        state = path.stat()
        # The inode's change time: copying tools may restore the time of modification.
        return f"{path.resolve()} {state.st_size} {state.st_ctime_ns}"

    def _copy(self, shard: Shard) -> bool:
        """Copy a shard, continuing an earlier partial copy; False if its hash is wrong."""
        partial = self._partial(shard)
        digest = hashlib.sha256()
        try:
            with (self.folder / shard.name).open("rb") as source, partial.open("a+b") as target:
                target.seek(0)
                for chunk in self._chunks(target):
                    digest.update(chunk)
                source.seek(target.tell())
                for chunk in self._chunks(source):
                    target.write(chunk)
                    digest.update(chunk)
                if self._stop.is_set():
                    return False
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # Free the disk for what is more important, such as checkpoints.
                partial.unlink(missing_ok=True)
                raise self._no_room(shard, str(error)) from error
            raise
        if digest.hexdigest() != shard.sha256:
            partial.unlink()
            return False
        os.replace(partial, self._entry(shard))
        sync(self.directory)
        return True

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while not self._stop.is_set() and (chunk := file.read(CHUNK)):
            yield chunk

    def _partial(self, shard: Shard) -> Path:
        return self.directory / f".{shard.sha256}.partial"

    def _make_room(self, shard: Shard) -> None:
        """Evict what was used longest ago until `shard` fits.

        Raises:
            DataError: When it would not even then; nothing is evicted.
        """
        partial = self._partial(shard)
        there = partial.stat().st_size if partial.exists() else 0
        # Partial copies of other runs are removed first.
        entries = [path for path in self.directory.glob(".*.partial") if path != partial]
        finished = self.directory.glob("*.beton")
        entries += sorted(finished, key=lambda path: path.stat().st_mtime)
        room = shutil.disk_usage(self.directory).free + there
        if self.max_bytes is not None:
            room = min(room, self.max_bytes - sum(path.stat().st_size for path in entries))
        with contextlib.ExitStack() as kept:
            unused = []
            for path in entries:
                if room >= shard.bytes:
                    break
                if kept.enter_context(_kept_from_use(path)):
                    unused.append(path)
                    room += path.stat().st_size
            if room < shard.bytes:
                raise self._no_room(shard, f"room for {max(room, 0) / 1e9:.1f} GB")
            for path in unused:
                path.unlink()

    def _no_room(self, shard: Shard, reason: str) -> DataError:
        size = f"{shard.bytes / 1e9:.1f} GB"
        return DataError(f"cache {self.directory} has no room for {shard.name} ({size}): {reason}")


def _touch(descriptor: int) -> None:
    """Set the time of last use to now."""
    # An entry that another user copied can be read, but its time cannot be set.
    with contextlib.suppress(PermissionError):
        os.utime(descriptor)


@contextlib.contextmanager
def _kept_from_use(entry: Path) -> Iterator[bool]:
    """Keep other processes from using an entry; False when one is using it."""
    with entry.open("rb") as file:
        yield lock(file)
