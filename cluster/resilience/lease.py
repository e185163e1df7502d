"""One attempt at a time: the group of workers that began last may publish, all older ones stop.

Two groups can train the same stage at once: pods that Kubernetes has given up are still alive, or
the workers of a node that was cut off and came back. Each takes a lease in the folder of the
checkpoints, which is on storage that all of them share.

    checkpoints/generation-7     of the attempt that may publish; inside, who that is

An attempt makes the file of the next number, then removes those of older ones, and only then
sweeps what these were writing and looks for the checkpoint to go on from. Who finds its file gone
is superseded. There is no lock and no renaming: on NFS clients trust their caches for names that
were missing and for what a folder holds, but the server alone answers O_EXCL, and opening a file
that is known asks it, too.

An older attempt may be paused anywhere and cannot publish afterwards. Its folder of a save was
either made before the newer attempt swept: then that has moved it, and publishing, which is a
renaming, fails; or it was made later: then the look for the lease that follows finds it gone.
"""

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster import durable, group
from cluster.checkpoint.store import sweep
from cluster.workers.current import Final

_NAME = re.compile(r"generation-(\d+)")


class Superseded(Final):
    """A newer attempt has taken this one's place: it must not write any more."""


@dataclass(frozen=True)
class Lease:
    """The right to publish checkpoints in `folder`, for the attempt of this number (from 1)."""

    folder: Path
    generation: int

    @classmethod
    def take(cls, folder: Path) -> Self:
        """All workers call it, before they look for a checkpoint; rank 0 takes the lease."""
        number = 0
        if group.rank() == 0:
            number = _next_generation(folder)
            sweep(folder, number)
        return cls(folder, group.broadcast(number))

    def check(self) -> None:
        """Look whether the lease is still there.

        Raises:
            Superseded: When a newer attempt has taken it.
            OSError: When the storage does not say.
        """
        path = _file(self.folder, self.generation)
        try:
            path.open().close()
        except FileNotFoundError:
            newest = max(_generations(self.folder), default=0)
            if newest <= self.generation:
                raise  # The folder itself is gone: the storage, not another attempt.
            raise Superseded(
                f"attempt {self.generation} in {self.folder} stops: attempt {newest} has begun, "
                f"{_owner(self.folder, newest)}. What was saved last is what it goes on from"
            ) from None


def _next_generation(folder: Path) -> int:
    """Take the number after all others; returns it when the older files are gone."""
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
    """Who holds a lease and since when, as far as its file says."""
    path = _file(folder, generation)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        owner = json.loads(path.read_text())
        return f"on {owner['host']}, process {owner['pid']}, at {since}"
    except (OSError, ValueError, KeyError):
        return "and does not say where"
