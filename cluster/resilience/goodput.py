"""Where the time went: every second of a worker belongs to one phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.workers.beacon import Beacon

OTHER = "other"


class Stopwatch:
    """Seconds by phase. A phase inside a phase pauses the outer one, so the sum is wall time.

    The `beacon` shows the agent the current phase, and the longest that it has taken so far.
    """

    def __init__(self, beacon: Beacon | None = None) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._longest: dict[str, float] = defaultdict(float)
        self._running = [OTHER]
        self._since = time.perf_counter()
        self._beacon = beacon

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self._running.append(name)
        self._show()
        try:
            yield
        finally:
            self._book()
            self._running.pop()
            self._show()

    @property
    def seconds(self) -> dict[str, float]:
        self._book()
        return dict(self._seconds)

    def _book(self) -> None:
        now, phase = time.perf_counter(), self._running[-1]
        self._seconds[phase] += now - self._since
        self._longest[phase] = max(self._longest[phase], now - self._since)
        self._since = now

    def _show(self) -> None:
        if self._beacon is not None:
            phase = self._running[-1]
            self._beacon.enter(phase, self._longest[phase])
