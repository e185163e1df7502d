"""Nodes of a real Ray cluster are missing, or large; `test_plans.py` has the faults of nodes."""

import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.laboratory.nodes import Laboratory, laboratory
from cluster.laboratory.processes import wait_until
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


def check_steps(training: Training, every: int) -> None:
    """Check that each step follows the one before or the last checkpoint, of `every` steps."""
    steps = [step for step, _ in training.steps()]
    assert steps[0] == 1
    for before, after in itertools.pairwise(steps):
        assert after in (before + 1, before // every * every + 1), steps


LONG: dict[str, object] = {"total": 100_000, "every": 10, "pause": 0.05}
"""Steps of a training that the test ends; with a save every ten, a fault costs at most ten."""


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
def test_workers_are_placed_on_one_node_if_they_fit(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    lab.add(1, cpus=2)
    large = lab.nodes[-1]
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(5)
    assert lab.at_work() == [large]
    assert len(lab.agents(large.name)) == 2
    training.finish()
    lab.end(large)
