"""Agents stay from one job of a driver to the next, and so does what is known of the nodes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.resilience.conductor import Conductor, GroupFailed
from cluster.resilience.faults import Cause, Fault, Quarantine
from cluster.resilience.roster import Kept
from tests.cluster.resilience.groups.local_agents import LocalPlacer, job, worker_processes
from tests.cluster.resilience.groups.steps import Steps, run

pytestmark = pytest.mark.slow


@dataclass
class Driver:
    """Jobs of one driver, and what was said."""

    placer: LocalPlacer
    kept: Kept = field(default_factory=Kept)
    said: list[str] = field(default_factory=list)

    def run(self, sizes: list[int], function: object, argument: object) -> None:
        conductor = Conductor(
            self.placer,
            sizes,
            stage="toy",
            start_timeout=60.0,
            say=self.said.append,
            kept=self.kept,
        )
        conductor.run(job(function, argument))  # type: ignore[arg-type]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver(LocalPlacer(8))
    yield driver
    driver.kept.dismiss()
    assert worker_processes() == []


def leave_traces(folder: Path) -> None:
    """Note this process and what it finds, and leave things behind in it."""
    found = [str(os.getpid()), os.getcwd(), os.environ.get("LEFT", "nothing")]
    (folder / f"worker-{dist.get_rank()}").write_text(" ".join(found))
    os.environ["LEFT"] = "something"
    os.chdir("/")


def traces(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().split() for path in sorted(folder.glob("worker-*"))}


def test_the_next_job_has_the_same_agents_and_new_processes(driver: Driver, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        driver.run([2], leave_traces, folder)
        waiting = {process.pid for process in worker_processes()}
        assert len(waiting) == 2, "for each agent, the process that the next job will have"
        if folder is first:
            stood_by = waiting
    assert len(driver.placer.agents) == 2
    pids = [{int(pid) for pid, *_ in traces(folder).values()} for folder in (first, second)]
    assert pids[1] == stood_by
    assert pids[0].isdisjoint(pids[1])
    for folder in (first, second):
        assert [left for _, *left in traces(folder).values()] == [[os.getcwd(), "nothing"]] * 2


def test_another_number_of_workers_has_those_that_fit(driver: Driver, tmp_path: Path) -> None:
    for size, placed in ((2, 2), (3, 3), (1, 3), (2, 4)):
        folder = tmp_path / f"{size}-{placed}"
        folder.mkdir()
        driver.run([size], leave_traces, folder)
        assert len(traces(folder)) == size
        assert len(driver.placer.agents) == placed
        assert sum(not agent.is_cut for agent in driver.placer.agents) == size


def test_after_an_error_no_agent_stays(driver: Driver, tmp_path: Path) -> None:
    with pytest.raises(GroupFailed):
        driver.run([2], run, Steps(tmp_path, fault="raise", often=9))
    assert driver.kept.members == []
    assert all(agent.is_cut for agent in driver.placer.agents)


def test_an_agent_that_is_lost_between_two_jobs_is_replaced(driver: Driver, tmp_path: Path) -> None:
    driver.run([2], leave_traces, tmp_path)
    driver.placer.agents[0].cut()
    driver.run([2], leave_traces, tmp_path)
    assert len(driver.placer.agents) == 3
    assert len(traces(tmp_path)) == 2


def test_the_failures_of_a_node_are_counted_over_all_jobs(driver: Driver, tmp_path: Path) -> None:
    words = "node 127.0.0.1 failed too often: it gets no more work"
    for often in (2, 1):
        assert words not in driver.said
        folder = tmp_path / f"{often}"
        folder.mkdir()
        driver.run([2], run, Steps(folder, fault="sigkill", often=often))
        assert len(list(folder.glob("fired-*"))) == often
    assert words in driver.said
    driver.kept.dismiss()
    (tmp_path / "third").mkdir()
    driver.run([2], leave_traces, tmp_path / "third")
    [failed] = driver.kept.quarantine.nodes
    assert driver.placer.avoided[-1] == {failed}
    assert failed not in {member.node for member in driver.kept.members}


@pytest.mark.parametrize(
    ("there", "before", "kept_away"),
    [
        ({"n"}, set(), False),
        ({"n", "m"}, set(), True),
        ({"n", "m"}, {"m"}, False),
        ({"n", "m"}, {"gone", "gone-too"}, True),  # Those are not among the nodes any more.
    ],
)
def test_the_only_node_stays_in_use_however_often_it_fails(
    there: set[str], before: set[str], kept_away: bool
) -> None:
    quarantine = Quarantine(after=2, nodes=frozenset(before))
    fault = Fault(cause="killed", rank=0, node="n", host="h", phase="step", step=1, error="gone")
    found = [quarantine.note(fault, there) for _ in range(4)]
    assert found == [False, kept_away, False, False]
    assert quarantine.nodes == before | ({"n"} if kept_away else set())


@pytest.mark.parametrize("cause", ["error", "spike", "preemption"])
def test_of_some_faults_no_node_is_the_cause(cause: Cause) -> None:
    quarantine = Quarantine(after=1)
    fault = Fault(cause=cause, rank=0, node="n", host="h", phase="step", step=5, error="high")
    assert not quarantine.note(fault, {"n", "m"})
    assert quarantine.nodes == frozenset()
