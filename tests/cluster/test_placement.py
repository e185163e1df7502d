"""On which nodes workers are put."""

import pytest

from cluster.placement import fewest_nodes

GPUS = {"CPU": 2.0, "GPU": 1.0}


def free(**gpus: float) -> dict[str, dict[str, float]]:
    return {node: {"CPU": 16.0, "GPU": count} for node, count in gpus.items()}


@pytest.mark.parametrize(
    ("nodes", "count", "chosen"),
    [
        (free(a=4, b=4), 4, ["a"] * 4),
        (free(a=2, b=8, c=4), 8, ["b"] * 8),
        (free(a=4, b=8, c=8), 12, ["b"] * 8 + ["a"] * 4),
        (free(a=8, b=1, c=8), 1, ["b"]),
        (free(a=2, b=0, c=1), 5, ["a", "a", "c"]),
        ({"a": {"CPU": 3.0, "GPU": 8.0}, "head": {"CPU": 64.0}}, 2, ["a"]),
        ({}, 2, []),
    ],
    ids=["one", "largest", "rest", "partly used", "too few", "what is short", "none"],
)
def test_workers_are_put_on_the_fewest_nodes(
    nodes: dict[str, dict[str, float]], count: int, chosen: list[str]
) -> None:
    assert fewest_nodes(nodes, GPUS, count) == chosen
