"""Starting, joining and leaving a Ray cluster: what is refused, and that nothing stays behind."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import torch

from cluster.launch import Cluster, ClusterError, Placement
from cluster.placement import worker_device
from tests.cluster.fake_gpu import visible_gpu

TOKEN = "CONVNEXTV2_TEST_LAUNCH"
PLACEMENT = Placement(num_workers=2, max_failures=1, start_timeout_seconds=120)


@pytest.fixture(autouse=True, scope="module")
def _own_clusters_only() -> Iterator[None]:
    """No cluster that somebody else runs here is joined, and ours can be told by its token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv(TOKEN, str(os.getpid()))
        yield


def offspring() -> list[str]:
    """Names of the processes that these tests started and that still run."""
    found = []
    for process in psutil.process_iter(["name", "status"]):
        try:
            ours = process.environ().get(TOKEN) == str(os.getpid())
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.name())
    return found


def all_gone(seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while offspring() and time.monotonic() < deadline:
        time.sleep(0.2)
    return offspring() == []


@pytest.mark.slow
def test_leaving_the_block_ends_what_it_started() -> None:
    with Cluster(PLACEMENT):
        assert "raylet" in offspring()
    assert all_gone(), offspring()


@pytest.mark.slow
def test_too_few_gpus_are_told_at_once_and_end_the_cluster() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    there = torch.cuda.device_count()
    too_many = replace(PLACEMENT, num_workers=there + 1, use_gpu=True)
    words = (
        rf"^cluster\.use_gpu: .* makes {there + 1}, .* on this machine .*use_gpu=false would do$"
    )
    with pytest.raises(ClusterError, match=words), Cluster(too_many):
        pass
    assert all_gone(), offspring()
    assert signal.getsignal(signal.SIGTERM) is handler, "Ctrl-C and SIGTERM stay ours"


def test_a_cluster_without_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    cluster = Cluster(replace(PLACEMENT, num_workers=2, use_gpu=True, start_timeout_seconds=0.0))
    words = r"at head:6379 has no room: 2 workers need 2 GPU \(free: 1\).*Lower cluster.num_work"
    with pytest.raises(ClusterError, match=words):
        cluster._await_resources("head:6379")


def test_a_dashboard_port_in_use_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"port {port} for Ray's dashboard is in use; set cluster.dashboard_port to a free"
        with (
            pytest.raises(ClusterError, match=words),
            Cluster(replace(PLACEMENT, dashboard_port=port)),
        ):
            pass


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    address = f"127.0.0.1:{port}"
    words = f"cannot connect to the Ray cluster at {address}: nothing answers there .*refused"
    with pytest.raises(ClusterError, match=words), Cluster(replace(PLACEMENT, address=address)):
        pass


def test_rays_client_is_refused() -> None:
    words = "at ray://127.0.0.1:10001: Ray's client is not supported: give the command on a machine"
    with (
        pytest.raises(ClusterError, match=words),
        Cluster(replace(PLACEMENT, address="ray://127.0.0.1:10001")),
    ):
        pass


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(ClusterError, match=r"at no-such-host\.invalid:6379: nothing answers"):
        Cluster(PLACEMENT).__enter__()


def test_resources_of_the_group_are_those_of_its_workers() -> None:
    placement = Placement(num_workers=3, cpus_per_worker=4, use_gpu=True)
    assert placement.worker_resources == {"CPU": 4.0, "GPU": 1.0}
    assert placement.resources == {"CPU": 12.0, "GPU": 3.0}
    assert replace(placement, use_gpu=False).resources == {"CPU": 12.0}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_of_gpus_is_the_users_if_they_set_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:512")
    environment = replace(PLACEMENT, use_gpu=True).environment
    found = {key: value for key, value in environment.items() if key.endswith("ALLOC_CONF")}
    assert found == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize("use_gpu", [True, False])
def test_workers_see_gpus_only_where_they_are_to_use_them(use_gpu: bool) -> None:
    environment = replace(PLACEMENT, use_gpu=use_gpu).environment
    assert environment.get("CUDA_VISIBLE_DEVICES") == (None if use_gpu else "")
    assert environment.get("DS_ACCELERATOR") == (None if use_gpu else "cpu")
    assert ("expandable_segments:True" in environment.values()) is use_gpu
    assert ("PYTORCH_NVML_BASED_CUDA_CHECK" in environment) is use_gpu


def test_the_configuration_chooses_the_device_not_what_is_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visible_gpu(monkeypatch)
    assert worker_device(use_gpu=False) == torch.device("cpu")
    assert worker_device(use_gpu=True) == torch.device("cuda", 1)
    visible_gpu(monkeypatch, capability=(7, 0))
    assert worker_device(use_gpu=False) == torch.device("cpu")
    with pytest.raises(ClusterError, match=r"cluster\.use_gpu is true.*capability 7\.0.*on CPUs"):
        worker_device(use_gpu=True)
