"""A node's own copy of shards that lie on slow or distant storage.

Entries are named by the shard's sha256, so a changed shard is never served from an old copy, and
data sets that share shards share copies. One process of a node copies (it holds a lock file, which
the kernel frees when it dies; another one takes over); all of them read the original until the copy
has arrived. What is read carries a shared lock, and is never evicted.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from convnextv2.data.collection import DataError
from convnextv2.data.manifest import Manifest, Shard, read_manifest, sync_folder

CHUNK = 8 << 20
POLL_SECONDS = 1.0
ATTEMPTS = 2

log = logging.getLogger(__name__)


class LocalCache:
    """Copies the shards of `folder` to `directory` while they are used.

    Args:
        folder: Shards and their manifest.
        directory: On the node's own disk; shared by its processes and by runs.
        max_bytes: Room for all entries; least recently used ones make way. None: all of the disk.

    Attributes:
        arrived: Number of shards whose copy is there; looked at between batches.
        error: Why copying stopped before all were there; training goes on from the originals.

    Raises:
        DataError: When the directory cannot be made, or the folder is not complete.
    """

    def __init__(self, folder: Path, directory: Path, max_bytes: int | None = None) -> None:
        self.folder, self.directory, self.max_bytes = folder, directory, max_bytes
        self.manifest: Manifest = read_manifest(folder)
        self.arrived = 0
        self.error: Exception | None = None
        self._used: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local-cache", daemon=True)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cache {directory} cannot be made: {error.strerror}") from error
        self._look()

    def start(self) -> "LocalCache":
        """Begin to copy, in a thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop copying and give the entries free; what was copied in part is gone on with later."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in self._used.values():
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
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Evicted between the two calls, or cut by something else?
                if not entry.exists() or os.fstat(descriptor).st_size != shard.bytes:
                    os.close(descriptor)
                    continue
                os.utime(entry)
                self._used[number] = descriptor
        self.arrived = len(self._used)

    def _run(self) -> None:
        try:
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
            self.error = error
            log.warning("%s; the other shards are read from %s", error, self.folder)

    @contextlib.contextmanager
    def _writer_lock(self) -> Iterator[bool]:
        with (self.directory / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _copy_missing(self) -> None:
        self._look()
        for number, shard in enumerate(self.manifest.shards):
            if number in self._used:
                continue
            self._make_room(shard)
            for attempt in range(1, ATTEMPTS + 1):
                if self._copy(shard, last=attempt == ATTEMPTS):
                    break
            if self._stop.is_set():
                return
            self._look()

    def _copy(self, shard: Shard, *, last: bool) -> bool:
        """Copy a shard, going on where an earlier copy was cut; False to try again from nothing."""
        partial = self.directory / f".{shard.sha256}.partial"
        digest = hashlib.sha256()
        with (self.folder / shard.name).open("rb") as source, partial.open("a+b") as target:
            target.seek(0)
            while chunk := target.read(CHUNK):
                digest.update(chunk)
            source.seek(target.tell())
            while chunk := source.read(CHUNK):
                if self._stop.is_set():
                    return True
                target.write(chunk)
                digest.update(chunk)
            target.flush()
            os.fsync(target.fileno())
        if digest.hexdigest() != shard.sha256:
            partial.unlink()
            if last:
                raise DataError(
                    f"{self.folder / shard.name} is not what its manifest says; see convnextv2 "
                    f"data check {self.folder}"
                )
            return False
        os.replace(partial, self._entry(shard))
        sync_folder(self.directory)
        return True

    def _make_room(self, shard: Shard) -> None:
        """Evict what was used longest ago until `shard` fits; raises DataError if it cannot."""
        partial = self.directory / f".{shard.sha256}.partial"
        there = partial.stat().st_size if partial.exists() else 0
        # What other runs copied in part goes first.
        entries = [path for path in self.directory.glob(".*.partial") if path != partial]
        finished = self.directory.glob("*.beton")
        entries += sorted(finished, key=lambda path: path.stat().st_mtime)
        while True:
            held = sum(path.stat().st_size for path in entries)
            room = shutil.disk_usage(self.directory).free + there
            if self.max_bytes is not None:
                room = min(room, self.max_bytes - held)
            if room >= shard.bytes:
                return
            evicted = next((path for path in entries if _evict(path)), None)
            if evicted is None:
                raise DataError(
                    f"cache {self.directory} has no room for {shard.name} "
                    f"({shard.bytes / 1e9:.1f} GB, room for {max(room, 0) / 1e9:.1f} GB)"
                )
            entries.remove(evicted)


def _evict(entry: Path) -> bool:
    """Remove an entry unless a process uses it."""
    with entry.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        entry.unlink()
        return True
