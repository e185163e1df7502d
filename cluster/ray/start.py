"""Starting Ray on this machine, where its processes may time out when the machine is busy.

Ray 2.60 then raises one of several errors, also plain `Exception` ("the current node timed out
during startup"), and leaves the processes of the attempt running.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster import require
from cluster.placement import ClusterError

if TYPE_CHECKING:
    from psutil import Process

# Whatever runs on Ray imports this file, so it is said here, once.
require("psutil", "ray", needed_by="cluster.launch")

ATTEMPTS = 2
LONGEST_REASON = 300
REAP_SECONDS = 10.0

log = logging.getLogger(__name__)


def start_with_retry(start: Callable[[], object], give_up: Callable[[], object]) -> None:
    """Call `start`; once more when it fails, after `give_up` and the end of what it left behind.

    Raises:
        ClusterError: In one sentence, when it failed again, or for a reason that will not pass.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = _children()
        try:
            start()
            return
        except ClusterError:
            raise
        except Exception as error:
            log.exception("Ray did not start, attempt %d", attempt)
            give_up()
            _end(_children() - before)
            if isinstance(error, ValueError):  # A wrong setting: trying again would not help.
                raise ClusterError(f"cannot start a Ray cluster here: {reason(error)}") from error
            if attempt == ATTEMPTS:
                raise ClusterError(
                    f"a Ray cluster did not start here in {ATTEMPTS} attempts; is this machine "
                    f"short of memory, or overloaded? Ray says: {reason(error)}"
                ) from error


@contextmanager
def signals_kept() -> Iterator[None]:
    """Put the caller's SIGTERM handler back: `ray.init` installs one that just exits."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def reason(error: BaseException) -> str:
    """The message of an error on one line, cut to `LONGEST_REASON`."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} …"


def _children() -> "set[Process]":
    from psutil import Process

    return set(Process().children(recursive=True))


def _end(processes: "set[Process]") -> None:
    from psutil import NoSuchProcess, wait_procs

    for process in processes:
        try:
            process.kill()
        except NoSuchProcess:
            continue
    wait_procs(processes, timeout=REAP_SECONDS)
