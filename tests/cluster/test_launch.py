"""Worker groups on a real Ray cluster of this machine: results, errors, deaths, refusals."""

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster import group
from cluster.launch import Cluster, ClusterError, Placement
from cluster.placement import worker_device

TOKEN = "CONVNEXTV2_TEST_LAUNCH"
PLACEMENT = Placement(num_workers=2, max_failures=1, start_timeout_seconds=120)


@pytest.fixture(autouse=True, scope="module")
def _own_clusters_only() -> Iterator[None]:
    """No cluster that somebody else runs here is joined, and ours can be told by its token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv(TOKEN, str(os.getpid()))
        yield


@pytest.fixture(scope="module")
def cluster(_own_clusters_only: None) -> Iterator[Cluster]:
    with Cluster(PLACEMENT) as cluster:
        yield cluster


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


def keep_pages(context: dict[str, Any]) -> None:
    """Leave the most page faults of touching 50 MB, and those of the twentieth time.

    glibc before 2.38 cuts a few bytes off an aligned block, and until its cache holds seven of
    those cuttings a freed block is that much too short for the next tensor of the same size.
    """
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.empty(50_000_000, dtype=torch.uint8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    (context["job"] / f"faults-{group.rank()}").write_text(f"{max(faults)} {faults[-1]}")


def meet(context: dict[str, Any]) -> None:
    """Leave what this worker of the group sees in a file of its own."""
    folder: Path = context["job"]
    seen = group.all_gather((group.rank(), group.world_size(), os.getpid()))
    threads = os.environ["OMP_NUM_THREADS"]
    (folder / f"worker-{group.rank()}").write_text(f"{threads} {seen}")


def fail_on_the_second(context: dict[str, Any]) -> None:
    with (context["job"] / f"entered-{group.rank()}").open("a") as file:
        file.write("x")
    if group.rank() == 1:
        raise KeyError("no such photograph")


class DeadlyParcel:
    """Kills the second worker that opens it, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        marker = self.folder / "killed while unpacking"
        if os.environ.get("RANK") == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def leave_rank(context: dict[str, Any]) -> None:
    (context["job"].folder / f"finished-{group.rank()}").touch()


def die_twice(context: dict[str, Any]) -> None:
    """The second worker is killed as it enters, when the group is not quite there, and later.

    The first one waits for it in a collective.
    """
    folder: Path = context["job"]
    with (folder / f"entered-{group.rank()}").open("a") as file:
        file.write("x")
    for marker, seconds in ((folder / "killed at once", 0), (folder / "killed later", 3)):
        if group.rank() == 1 and not marker.exists():
            time.sleep(seconds)
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"finished-{group.rank()}").write_text(repr(group.all_gather(group.rank())))


@pytest.mark.slow
def test_every_worker_runs_in_one_group(cluster: Cluster, tmp_path: Path) -> None:
    looks = []
    cluster.run(
        meet,
        tmp_path,
        name="meet",
        storage=tmp_path / "ray",
        while_waiting=lambda: looks.append(len(list(tmp_path.glob("worker-*")))),
    )
    first, second = ((tmp_path / f"worker-{rank}").read_text() for rank in (0, 1))
    assert first == second
    threads, members = first.split(" ", 1)
    assert threads == str(PLACEMENT.cpus_per_worker)
    (rank0, size0, pid0), (rank1, size1, pid1) = eval(members)
    assert (rank0, size0, rank1, size1) == (0, 2, 1, 2)
    assert len({pid0, pid1, os.getpid()}) == 3
    assert looks[0] == 0, "while_waiting is called while the workers start"
    assert looks[-1] == 2, "and once more when they are done"
    assert list((tmp_path / "ray").iterdir()) == [], "Ray's own state of a run is not kept"


@pytest.mark.slow
def test_cpu_workers_keep_the_memory_of_freed_tensors(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run(keep_pages, tmp_path, name="keep", storage=tmp_path / "ray")
    most, last = map(int, (tmp_path / "faults-0").read_text().split())
    assert most > 0
    assert last < 10  # 12,000 small pages, or 24 huge ones, if it came from the kernel again


@pytest.mark.slow
def test_an_exception_names_rank_type_and_message(cluster: Cluster, tmp_path: Path) -> None:
    once = Cluster(replace(cluster.placement, max_failures=0))
    with pytest.raises(ClusterError) as info:
        once.run(fail_on_the_second, tmp_path, name="fail", storage=tmp_path / "ray")
    assert str(info.value).splitlines() == [
        "the worker group failed for good:",
        "  worker 1: KeyError: 'no such photograph'",
    ]
    assert (tmp_path / "entered-1").read_text() == "x"


@pytest.mark.soak
def test_after_a_sigkill_the_group_starts_over(cluster: Cluster, tmp_path: Path) -> None:
    twice = Cluster(replace(cluster.placement, max_failures=2))
    twice.run(die_twice, tmp_path, name="die", storage=tmp_path / "ray")
    assert {path.name for path in tmp_path.glob("killed*")} == {"killed at once", "killed later"}
    assert (tmp_path / "entered-1").read_text() == "xxx"
    assert [(tmp_path / f"finished-{rank}").read_text() for rank in (0, 1)] == ["[0, 1]"] * 2


@pytest.mark.slow
def test_a_death_while_the_group_starts_leaves_room_for_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Ray leaks the placement group of such a group; without its room the next waits forever."""
    cluster.run(leave_rank, DeadlyParcel(tmp_path), name="parcel", storage=tmp_path / "ray")
    names = {path.name for path in tmp_path.iterdir()} - {"ray"}
    assert names == {"killed while unpacking", "finished-0", "finished-1"}


@pytest.mark.slow
def test_leaving_the_block_ends_what_it_started(cluster: Cluster) -> None:
    """The last test on the common cluster."""
    assert "raylet" in offspring()
    cluster.__exit__(None, None, None)
    assert all_gone(), offspring()


@pytest.mark.slow
def test_too_few_resources_end_the_wait_and_the_cluster() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    impatient = replace(PLACEMENT, use_gpu=True, start_timeout_seconds=0.5)
    words = r"this machine has no room: 2 workers need 2 GPU \(free: 0\).*Lower cluster.num_workers"
    with pytest.raises(ClusterError, match=words), Cluster(impatient):
        pass
    assert all_gone(), offspring()
    assert signal.getsignal(signal.SIGTERM) is handler, "Ctrl-C and SIGTERM stay ours"


def test_a_dashboard_port_in_use_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"port {port} for Ray's dashboard is in use; set cluster.dashboard_port to a free"
        with (
            pytest.raises(ClusterError, match=words),
            Cluster(replace(PLACEMENT, dashboard_port=port)),
        ):
            pass


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_told_at_once(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    address = f"{scheme}127.0.0.1:{port}"
    words = f"cannot connect to the Ray cluster at {address}: nothing answers there .*refused"
    with pytest.raises(ClusterError, match=words), Cluster(replace(PLACEMENT, address=address)):
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


@pytest.mark.parametrize("use_gpu", [True, False])
def test_workers_see_gpus_only_where_they_are_to_use_them(use_gpu: bool) -> None:
    environment = replace(PLACEMENT, use_gpu=use_gpu).environment
    assert environment.get("CUDA_VISIBLE_DEVICES") == (None if use_gpu else "")
    assert environment.get("DS_ACCELERATOR") == (None if use_gpu else "cpu")
    assert ("expandable_segments:True" in environment.values()) is use_gpu


def test_the_configuration_chooses_the_device_not_what_is_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert worker_device(use_gpu=False) == torch.device("cpu")
    assert worker_device(use_gpu=True) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker_device(use_gpu=False) == torch.device("cpu")
    with pytest.raises(ClusterError, match=r"cluster\.use_gpu is true.*nvidia-smi"):
        worker_device(use_gpu=True)
