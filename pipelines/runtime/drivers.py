"""Records in a stage's folder when drivers were running it: a line at the start, one at the end.

A driver that is killed writes no end. While it runs it touches the file, so the modification time
of the file tells when it was last alive.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.resilience.journal import Journal

FILE = "drivers.jsonl"
ALIVE_SECONDS = 5.0


@dataclass(frozen=True)
class Span:
    """A driver ran from `began` to `ended` (epoch seconds), or is still running."""

    began: float
    ended: float


@contextmanager
def at_work(directory: Path) -> Iterator[Callable[[], None]]:
    """Record that this driver is running the stage in `directory`.

    Yields a function that the driver must call a few times a second to show that it is alive.
    """
    path, touched = directory / FILE, time.monotonic()
    journal = Journal(path)
    before = read_spans(directory)
    if before and not _is_ended(path):
        journal.append(json.dumps({"ended": before[-1].ended}))
    journal.append(json.dumps({"began": time.time()}))

    def alive() -> None:
        nonlocal touched
        if time.monotonic() - touched > ALIVE_SECONDS:
            touched = time.monotonic()
            with suppress(OSError):  # The disk may be away for a while; a later call will do.
                os.utime(path)

    try:
        yield alive
    finally:
        journal.append(json.dumps({"ended": time.time()}))


def read_spans(directory: Path) -> list[Span]:
    """When drivers were running a stage, in order; the last may still be running."""
    path = directory / FILE
    if not path.exists():
        return []
    alive = path.stat().st_mtime
    times = [next(iter(each.items())) for each in _lines(path)]
    began = [time for what, time in times if what == "began"]
    ended = [time for what, time in times if what == "ended"]
    if len(ended) < len(began):
        ended.append(max(alive, began[-1]))
    return [Span(*span) for span in zip(began, ended, strict=True)]


def _is_ended(path: Path) -> bool:
    return "ended" in _lines(path)[-1]


def _lines(path: Path) -> list[dict[str, float]]:
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
