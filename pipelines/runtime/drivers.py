"""When a driver was at work on a stage: lines in its folder, begun and ended.

A driver that was killed leaves no end. While it is alive it touches the file, so the time of the
file says until when it lived.
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
    """A driver was at work from `began` to `ended` (epoch seconds), or is so still."""

    began: float
    ended: float


@contextmanager
def at_work(directory: Path) -> Iterator[Callable[[], None]]:
    """Note that a driver is at work on the stage in `directory`.

    Yields what it is to call a few times a second, to be known as alive.
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
            with suppress(OSError):  # Of a disk that is away for a while; the next one counts.
                os.utime(path)

    try:
        yield alive
    finally:
        journal.append(json.dumps({"ended": time.time()}))


def read_spans(directory: Path) -> list[Span]:
    """When drivers were at work on a stage, in their order; the last may be so still."""
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
