"""An append-only file of lines; storage that fails or hangs delays lines, but never the caller."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

WAIT_SECONDS = 2.0
"""How long a caller may be held up by storage that hangs, once until it is quick again."""
PAUSE_SECONDS = 1.0
"""Between tries, while the storage fails and there are no new lines."""
FLUSH_SECONDS = 60.0
"""Storage that is away for a minute costs no line."""

log = logging.getLogger(__name__)


class Journal:
    """Appends lines to a file, in a thread that lives while there is something to write.

    A line is in the file when `append` returns, so a killed process loses none, unless the storage
    fails or hangs. Then lines are kept, and written in order when it works again. An incomplete
    last line, left by a process that ended with a full disk or a lost node, is dropped.

    Args:
        path: The file.
        may_write: Asked before lines are written; once it says no, none is any more.
    """

    def __init__(self, path: Path, may_write: Callable[[], bool] | None = None) -> None:
        self.path = path
        self._may_write = may_write
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._new = b""
        self._appended = self._tried = 0  # Numbers of lines.
        self._hangs = self._closed = False
        # These are the thread's own.
        self._unwritten = b""
        self._mended = False

    def append(self, line: str) -> None:
        with self._changed:
            if self._closed:
                return
            self._new += line.encode() + b"\n"
            self._appended += 1
            number = self._appended
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            if not self._hangs:
                tried = self._changed.wait_for(lambda: self._tried >= number, WAIT_SECONDS)
                self._hangs = not tried

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all lines are written, at most so long; returns whether they are."""
        with self._changed:
            written = self._changed.wait_for(lambda: self._thread is None, seconds)
        if not written:
            log.error("the last lines of %s are not written: the storage fails", self.path)
        return written

    def _work(self) -> None:
        """Write until nothing is left."""
        failing = False
        while True:
            with self._changed:
                if failing:
                    self._changed.wait_for(lambda: bool(self._new), PAUSE_SECONDS)
                self._unwritten, self._new = self._unwritten + self._new, b""
                taken = self._appended
            began = time.monotonic()
            try:
                self._write()
                failing = False
            except OSError as error:
                if not failing:
                    log.warning("%s is written later: %s", self.path, error)
                failing = True
            with self._changed:
                self._tried, self._hangs = taken, time.monotonic() - began > WAIT_SECONDS
                if not self._unwritten and not self._new:
                    self._thread = None
                self._changed.notify_all()
                if self._thread is None:
                    return

    def _write(self) -> None:
        if self._may_write is not None and not self._may_write():
            self._closed, self._unwritten = True, b""
            return
        with self.path.open("ab", buffering=0) as file:
            if not self._mended:
                whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
                file.truncate(len(whole + newline))
                self._mended = True
            while self._unwritten:
                # A disk that fills up may take a part of the line; the rest is written later.
                written = os.write(file.fileno(), self._unwritten)
                self._unwritten = self._unwritten[written:]
