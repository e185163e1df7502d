"""Worker groups on one real Ray cluster of this machine: results, errors, deaths."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster import group
from cluster.launch import Cluster, ClusterError, Placement

PLACEMENT = Placement(num_workers=2, max_failures=1, start_timeout_seconds=120)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with Cluster(PLACEMENT) as cluster:
            yield cluster


def keep_pages(folder: Path) -> None:
    """Leave the most page faults of touching 50 MB, and those of the twentieth time.

    glibc before 2.38 cuts a few bytes off an aligned block, and until its cache holds seven of
    those cuttings a freed block is that much too short for the next tensor of the same size.
    """
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.empty(50_000_000, dtype=torch.uint8).fill_(1)
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    (folder / f"faults-{group.rank()}").write_text(f"{max(faults)} {faults[-1]}")


def meet(folder: Path) -> None:
    """Leave what this worker of the group sees in a file of its own."""
    seen = group.all_gather((group.rank(), group.world_size(), os.getpid()))
    threads = os.environ["OMP_NUM_THREADS"]
    (folder / f"worker-{group.rank()}").write_text(f"{threads} {seen}")


def fail_on_the_second(folder: Path) -> None:
    with (folder / f"entered-{group.rank()}").open("a") as file:
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


def leave_rank(parcel: DeadlyParcel) -> None:
    (parcel.folder / f"finished-{group.rank()}").touch()


def die_twice(folder: Path) -> None:
    """The second worker is killed as it enters, when the group is not quite there, and later.

    The first one waits for it in a collective.
    """
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


def prepare_for(job: object) -> None:
    """Nothing needs to be imported."""


def leave_parent(folder: Path) -> None:
    """Leave the agent's process, which is the parent of this one."""
    (folder / f"{os.getppid()} {os.getpid()}").touch()


@pytest.mark.slow
def test_agents_stay_for_the_next_group_and_make_room_for_tasks(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        prepare = partial(prepare_for, tmp_path / name)  # Each stage has its own.
        cluster.run(leave_parent, tmp_path, name=name, prepare=prepare)
    pairs = [path.name.split() for path in tmp_path.iterdir()]
    assert len({child for _, child in pairs}) == 4
    agents = {int(agent) for agent, _ in pairs}
    assert len(agents) == 2
    # Every CPU is taken by an agent, until tasks need them.
    assert sorted(cluster.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert not any(psutil.pid_exists(agent) for agent in agents)


@pytest.mark.slow
def test_cpu_workers_keep_the_memory_of_freed_tensors(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run(keep_pages, tmp_path, name="keep")
    most, last = map(int, (tmp_path / "faults-0").read_text().split())
    assert most > 0
    assert last < 10  # 12,000 small pages, or 24 huge ones, if it came from the kernel again


@pytest.mark.slow
def test_an_exception_names_rank_type_and_message(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "placement", replace(PLACEMENT, max_failures=0))
    with pytest.raises(ClusterError) as info:
        cluster.run(fail_on_the_second, tmp_path, name="fail")
    assert str(info.value).splitlines() == [
        "the worker group failed for good:",
        "  worker 1: KeyError: 'no such photograph'",
        "  (cluster.max_failures is 0)",
    ]
    assert (tmp_path / "entered-1").read_text() == "x"


@pytest.mark.soak
def test_after_a_sigkill_the_group_starts_over(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "placement", replace(PLACEMENT, max_failures=2))
    cluster.run(die_twice, tmp_path, name="die")
    assert {path.name for path in tmp_path.glob("killed*")} == {"killed at once", "killed later"}
    assert (tmp_path / "entered-1").read_text() == "xxx"
    assert [(tmp_path / f"finished-{rank}").read_text() for rank in (0, 1)] == ["[0, 1]"] * 2


@pytest.mark.slow
def test_a_death_while_the_group_starts_leaves_room_for_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Ray leaks the placement group of such a group; without its room the next waits forever."""
    cluster.run(leave_rank, DeadlyParcel(tmp_path), name="parcel")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"killed while unpacking", "finished-0", "finished-1"}
