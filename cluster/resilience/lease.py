"""Leases: only the group of workers that began last may publish; all older ones stop.

Two groups, called attempts here, can work at the same stage at the same time: pods that Kubernetes
has given up may still be alive, and a node that was cut off may come back. Each attempt takes a
lease in the folder that it publishes in, which is on shared storage: that of the checkpoints, or
that of a stage whose workers write one result.

    checkpoints/generation-7     the lease of the attempt that may publish; names its owner

An attempt creates the file with the next number, then removes the files of older attempts, and
only then removes their unfinished saves and looks for the checkpoint to resume from. An attempt
whose file is gone is superseded. No locks or renames are used, because NFS clients cache missing
names and folder listings; but creating a file with O_EXCL, and opening a known file, always ask
the server.

An older attempt may be paused at any point and still cannot publish afterwards. If it created the
folder of its save before the newer attempt cleaned up, that folder is gone, and the rename that
publishes it fails. If it created the folder later, the check of its lease that follows fails.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster import durable, group
from cluster.checkpoint.store import sweep, unused_name
from cluster.workers.current import Final, worker

WATCH_SECONDS = 10.0
_NAME = re.compile(r"generation-(\d+)")

log = logging.getLogger(__name__)


class Superseded(Final):
    """A newer attempt has replaced this one, which must not write any more."""


@dataclass(frozen=True)
class Lease:
    """The right of the attempt `generation` (from 1) to publish in `folder`."""

    folder: Path
    generation: int

    @classmethod
    def take(cls, folder: Path) -> Self:
        """Take the lease on rank 0; collective, and called before a checkpoint is looked for."""
        number = 0
        if group.rank() == 0:
            number = _next_generation(folder)
            sweep(folder, number)
        return cls(folder, group.broadcast(number))

    def check(self) -> None:
        """Check that this attempt still holds the lease.

        Raises:
            Superseded: When a newer attempt has taken it.
            OSError: When the storage cannot be read.
        """
        path = _file(self.folder, self.generation)
        try:
            path.open().close()
        except FileNotFoundError:
            newest = max(_generations(self.folder), default=0)
            if newest <= self.generation:
                raise  # The folder itself is gone: a storage failure, not a newer attempt.
            raise Superseded(
                f"attempt {self.generation} in {self.folder} stops: attempt {newest} has begun, "
                f"{_owner(self.folder, newest)}. What was saved last is what it goes on from"
            ) from None

    def held(self) -> bool:
        """Whether this attempt still holds the lease.

        Raises:
            OSError: When the storage cannot be read.
        """
        try:
            self.check()
        except Superseded:
            return False
        return True

    def publish(self, name: str, content: bytes, into: Path | None = None) -> None:
        """Write a file of the folder, or of the folder `into` on the same storage, whole or not at
        all.

        Raises:
            Superseded: When a newer attempt has taken the lease.
            OSError: When the storage fails.
        """
        final = (into or self.folder) / name
        partial = self.folder / unused_name(f"step-{name}", self.generation)
        partial.mkdir()
        try:
            self.check()
            durable.write(partial / name, [content])
            os.replace(partial / name, final)
        except FileNotFoundError:
            self.check()  # A newer attempt removes what this one is writing.
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        durable.sync_folder(final.parent)

    def watch(self, every: float = WATCH_SECONDS) -> None:
        """Check the lease in a thread, and end this worker's process once it is lost.

        An attempt need not get to its next save: its steps are long, or it waits for workers that
        are gone. Until then its GPUs would be taken, and it would train for nothing. Outside a
        child of an agent, nothing is done.
        """
        give_up = worker().give_up
        if give_up is None:
            return

        def check_on_and_on() -> None:
            while True:
                time.sleep(every)
                try:
                    self.check()
                except Superseded as superseded:
                    give_up(superseded)
                    return
                except OSError as error:
                    # Storage that cannot be read is the next save's to tell.
                    log.debug("the lease in %s cannot be checked: %s", self.folder, error)

        threading.Thread(target=check_on_and_on, name="lease", daemon=True).start()


def _next_generation(folder: Path) -> int:
    """Create the file with the next number, remove the older ones, and return the number."""
    durable.make_folder(folder)
    number = 0
    while True:
        number = max([number, *_generations(folder)]) + 1
        path = _file(folder, number)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps({"host": os.uname().nodename, "pid": os.getpid()}))
        # A client that has made a file reads the folder from the server again: the first look may
        # have been at an old copy, and the number not the highest.
        found = _generations(folder)
        if max([number, *found]) == number:
            break
        path.unlink()
    for older in found:
        if older < number:
            _file(folder, older).unlink(missing_ok=True)
    durable.sync_folder(folder)
    return number


def _generations(folder: Path) -> list[int]:
    return [int(match[1]) for each in os.listdir(folder) if (match := _NAME.fullmatch(each))]


def _file(folder: Path, generation: int) -> Path:
    return folder / f"generation-{generation}"


def _owner(folder: Path, generation: int) -> str:
    """Who holds a lease and since when, as far as its file tells."""
    path = _file(folder, generation)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        owner = json.loads(path.read_text())
        return f"on {owner['host']}, process {owner['pid']}, at {since}"
    except (OSError, ValueError, KeyError):
        return "and does not say where"
