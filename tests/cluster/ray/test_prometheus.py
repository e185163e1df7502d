"""Metrics are read where Prometheus reads them: at the endpoint of a real Ray."""

import re
import time
import urllib.request

import pytest

from cluster.launch import Cluster, Placement

PATIENCE_SECONDS = 60.0


def scraped() -> dict[tuple[str, str], float]:
    """Values of ours by name and by the cause they are of, if they are."""
    import ray

    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    found = re.findall(r"^(ray_toy_\w+)\{(.*)\} (\S+)$", page, re.MULTILINE)
    return {
        (name, "".join(re.findall(r'cause="(\w+)"', labels))): float(value)
        for name, labels, value in found
        if 'run="demo"' in labels
    }


@pytest.mark.slow
def test_gauges_and_counters_are_at_rays_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Cluster(Placement(num_workers=1)) as cluster:
        descriptions = {"toy_step": "Steps done", "toy_faults_total": "Faults by cause"}
        metrics = cluster.metrics(descriptions, {"run": "demo"})
        metrics.set("toy_step", 3)
        metrics.set("toy_step", 12)
        for cause in ("killed", "hang", "killed"):
            metrics.count("toy_faults_total", cause=cause)
        expected = {
            ("ray_toy_step", ""): 12.0,
            ("ray_toy_faults_total", "killed"): 2.0,
            ("ray_toy_faults_total", "hang"): 1.0,
        }
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := scraped()) != expected and time.monotonic() < deadline:
            time.sleep(0.5)
    assert found == expected
