"""Faults on a real Ray cluster of several nodes: training continues, and no process is left."""

import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.laboratory.nodes import RAYLET, Laboratory, laboratory, wait_until
from cluster.resilience import incidents
from cluster.resilience.incidents import PHASES, Incident
from tests.faults.driver import Plan

DRIVER = "tests.faults.driver"


@pytest.fixture(scope="module")
def head() -> Iterator[Laboratory]:
    with laboratory() as lab:
        yield lab


@pytest.fixture
def lab(head: Laboratory) -> Iterator[Laboratory]:
    """The cluster; nodes that the previous test left intact are reused."""
    yield head
    head.kill("driver")


@dataclass
class Training:
    """A driver, and the files that it has written to its folder."""

    lab: Laboratory
    folder: Path
    driver: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls, lab: Laboratory, folder: Path, steps: dict[str, object], **plan: int
    ) -> "Training":
        Plan(lab.address, steps, **plan).write(folder)  # type: ignore[arg-type]
        return cls(lab, folder, lab.drive(DRIVER, str(folder)))

    def steps(self) -> list[tuple[int, int]]:
        """(step, world size) of all steps that rank 0 did, in order."""
        path = self.folder / "steps-0"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(step), int(size)) for step, size in map(str.split, lines)]

    def done(self) -> int:
        return max((step for step, _ in self.steps()), default=0)

    def said(self) -> str:
        path = self.folder / "said"
        return path.read_text() if path.exists() else ""

    def incidents(self) -> list[Incident]:
        return incidents.read(self.folder)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: self.done() >= step or self.driver.poll() is not None, f"step {step}")
        assert self.done() >= step, self.said()

    def wait_for_recovery(self) -> Incident:
        """The only incident, once training has continued."""
        wait_until(lambda: any(each.recovered for each in self.incidents()), self.said())
        [incident] = self.incidents()
        return incident

    def finish(self) -> None:
        """Let training end early; none of its processes may be left."""
        (self.folder / "finish").touch()
        assert self.driver.wait(120) == 0, self.said()
        wait_until(lambda: not self.lab.children() + self.lab.agents(), "no worker is left", 60)


def check(incident: Incident, cause: str) -> None:
    """Check that the record of a recovery is complete."""
    assert incident.recovered
    assert incident.cause == cause
    assert {"detection", "teardown", "placement", "process group"} <= set(incident.seconds)
    assert set(incident.seconds) <= set(PHASES)


def check_steps(training: Training, every: int | None = None) -> None:
    """Check that each step follows the one before or the last checkpoint, of `every` steps."""
    steps = [step for step, _ in training.steps()]
    assert steps[0] == 1
    for before, after in itertools.pairwise(steps):
        saved = before if every is None else before // every * every
        assert after in (before + 1, saved + 1), steps


LONG: dict[str, object] = {"total": 100_000, "every": 10, "pause": 0.05}
"""Steps of a training that the test ends; with a save every ten, a fault costs at most ten."""
UNSAVED = LONG | {"every": 100_000}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        pytest.param("raylet killed", "node", marks=pytest.mark.slow),
        pytest.param("node frozen", "node", marks=pytest.mark.soak),
        pytest.param("agent killed", "node", marks=pytest.mark.soak),
        pytest.param("child killed", "killed", marks=pytest.mark.soak),
    ],
)
def test_training_goes_on(fault: str, cause: str, lab: Laboratory, tmp_path: Path) -> None:
    lab.have(3)
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(15)
    victim = lab.at_work()[1]
    if fault == "raylet killed":
        lab.raylet(victim).kill()
    elif fault == "node frozen":
        lab.freeze(victim)
    else:
        processes = lab.agents if fault == "agent killed" else lab.children
        [process] = processes(victim.name)
        process.kill()
    incident = training.wait_for_recovery()
    check(incident, cause)
    assert (incident.rank, incident.host, incident.workers) == (1, victim.host, (2, 2))
    assert f"worker 1: {incident.error}; going on from the last checkpoint" in training.said()
    if cause == "node":
        lab.end(victim)
    training.finish()
    check_steps(training, every=10)


@pytest.mark.soak
def test_a_frozen_raylet_stops_no_training(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(5)
    raylet = lab.raylet(lab.at_work()[1])
    raylet.suspend()
    training.wait_for_step(training.done() + 100)
    assert raylet.status() == psutil.STATUS_STOPPED
    raylet.resume()
    training.finish()
    assert training.incidents() == []


@pytest.mark.soak
def test_a_node_that_is_preempted_is_left_in_time(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(3)
    training = Training.start(lab, tmp_path, UNSAVED)
    training.wait_for_step(15)
    victim = lab.at_work()[1]
    lab.preempt(victim)
    wait_until(lambda: lab.at_work() and victim not in lab.at_work(), "the node is left")
    wait_until(lambda: not lab.processes(victim.name, RAYLET), "the node is gone")
    training.wait_for_step(training.done() + 5)
    training.finish()
    check_steps(training)
    assert "a node is about to go: saving a checkpoint of this step" in training.said()
    assert training.incidents() == []


@pytest.mark.soak
def test_a_node_that_joins_is_taken_in(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(1)
    training = Training.start(lab, tmp_path, UNSAVED, min_workers=1)
    training.wait_for_step(5)
    lab.add(1)
    wait_until(lambda: training.steps()[-1][1] == 2, "two workers")
    training.finish()
    check_steps(training)
    assert list(dict.fromkeys(size for _, size in training.steps())) == [1, 2]


@pytest.mark.soak
def test_a_node_that_is_missing_is_waited_for(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(5)
    lab.end(lab.at_work()[0])
    wait_until(lambda: "waiting for 1 more of 2 workers, " in training.said(), "it waits")
    lab.add(1)
    check(training.wait_for_recovery(), "node")
    training.finish()
    check_steps(training, every=10)


@pytest.mark.soak
def test_a_driver_that_is_killed_leaves_nothing(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(15)
    before = {process.pid for process in lab.children() + lab.agents()}
    training.driver.kill()
    again = Training.start(lab, tmp_path, LONG)
    wait_until(
        lambda: not before & {process.pid for process in lab.children() + lab.agents()},
        "the old workers are gone",
        seconds=20,
    )
    again.wait_for_step(again.done() + 15)
    again.finish()
    check_steps(again, every=10)
