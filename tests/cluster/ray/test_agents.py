"""What the placer of agents sees of a Ray cluster."""

import socket
from types import SimpleNamespace

import pytest

from cluster.placement import Placement
from cluster.ray import agents
from cluster.ray.agents import RayPlacer


def test_a_head_that_is_gone_is_told_once_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # Not on collection: it changes sys.path.

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        draining = {"node": 0}
        monkeypatch.setattr(agents, "LEAVING_SECONDS", 0.0)
        monkeypatch.setattr(
            ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address)
        )
        monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: draining.copy())
        said: list[str] = []
        placer = RayPlacer(Placement(num_workers=1), b"", said.append)
        assert placer.leaving() == {"node"}
        assert said == []
    draining.clear()
    assert [placer.leaving(), placer.leaving()] == [{"node"}] * 2, "Ray would wait for a minute"
    [sentence] = said
    assert sentence.startswith(f"the head of the Ray cluster at {address} does not answer")
