"""Redirection of what libraries print to a file, so that the terminal shows our messages only."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def redirected(path: Path) -> Iterator[TextIO]:
    """Send this process's standard output and error to `path`; yields the original
    standard error, for our messages.

    Works on file descriptors, so what C++ libraries and child processes print goes along.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    terminal = os.fdopen(os.dup(kept[1]), "w")
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        terminal.close()
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


@contextmanager
def worker_log(path: Path, rank: int) -> Iterator[None]:
    """Send a worker's output to `<path>.rank<N>.log`."""
    with redirected(path.with_name(f"{path.name}.rank{rank}.log")):
        yield
