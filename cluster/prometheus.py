"""Metrics at Ray's own Prometheus endpoint, where a cluster's monitoring looks for them.

Ray puts "ray_" before their names, and every node serves those of its processes.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class RayMetrics:
    """Gauges and counters of this process, which is connected to Ray.

    Args:
        descriptions: What there is, by name.
        labels: Of all of them, such as the run's name.
    """

    def __init__(self, descriptions: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self._descriptions, self._labels = descriptions, dict(labels)
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def set(self, name: str, value: float) -> None:
        """What a gauge stands at."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, self._descriptions[name], tuple(self._labels))
        self._gauges[name].set(value, tags=self._labels)

    def count(self, name: str, **labels: str) -> None:
        """One more of a counter, by these labels besides."""
        every = self._labels | labels
        if name not in self._counters:
            self._counters[name] = Counter(name, self._descriptions[name], tuple(every))
        self._counters[name].inc(1, tags=every)
