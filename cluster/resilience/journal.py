"""An append-only file of lines; a full disk delays lines, but never stops the caller."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


class Journal:
    """Appends lines to a file; a line that cannot be written is kept, and written before the next.

    An incomplete last line, left by a process that ended with a full disk or a lost node, is
    dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mended = False
        self._unwritten = b""
        self._failing = False

    def append(self, line: str) -> None:
        self._unwritten += line.encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if not self._failing:
                log.warning("%s is written later: %s", self.path, error)
            self._failing = True
        else:
            self._failing = False

    def _write(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            if not self._mended:
                whole, newline, _ = self.path.read_bytes().rpartition(b"\n")
                file.truncate(len(whole + newline))
                self._mended = True
            while self._unwritten:
                # A disk that fills up may take a part of the line; the rest is written later.
                written = os.write(file.fileno(), self._unwritten)
                self._unwritten = self._unwritten[written:]
