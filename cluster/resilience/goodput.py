"""Where the time went: every second of a worker belongs to one phase."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

OTHER = "other"


class Stopwatch:
    """Seconds by phase. A phase inside a phase pauses the outer one, so the sum is wall time."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._running = [OTHER]
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self._running.append(name)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    @property
    def seconds(self) -> dict[str, float]:
        self._book()
        return dict(self._seconds)

    def _book(self) -> None:
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now
