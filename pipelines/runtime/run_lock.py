"""The lock of a run folder: one command at a time works in it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convnextv2.durable import lock

FILE = ".lock"


class BusyError(RuntimeError):
    """Another process works in the same run folder."""


@contextmanager
def exclusive(run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the run folder's lock; the kernel lets go of it however the process ends.

    On shared storage it holds for all machines, if the storage has locks. If it has none, `say` is
    told; then leases keep what two commands publish apart (`cluster.resilience.lease`).

    Raises:
        BusyError: When another process has the lock.
    """
    with (run_dir / FILE).open("a+") as file:
        try:
            free = lock(file)
        except OSError as error:
            free = True
            say(
                f"{run_dir} has no file locks ({error.strerror}): of two commands that work in it "
                "at once, the one that began last goes on"
            )
        if not free:
            file.seek(0)
            raise BusyError(
                f"{run_dir} is in use by process {file.read().strip() or '?'}; wait for it, stop "
                "it, or give another --run-dir"
            )
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
