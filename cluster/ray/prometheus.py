"""Metrics at Ray's own Prometheus endpoint, which a cluster's monitoring already scrapes.

Ray prefixes their names with "ray_", and every node serves the metrics of its own processes.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class RayMetrics:
    """Gauges and counters of this process, which is connected to Ray.

    Args:
        descriptions: The description of each metric, by name.
        labels: Labels that every metric carries, such as the run's name.
    """

    def __init__(self, descriptions: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self._descriptions, self._labels = descriptions, dict(labels)
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, self._descriptions[name], tuple(self._labels))
        self._gauges[name].set(value, tags=self._labels)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter, with these labels in addition to the common ones."""
        every = self._labels | labels
        if name not in self._counters:
            self._counters[name] = Counter(name, self._descriptions[name], tuple(every))
        self._counters[name].inc(1, tags=every)
