"""An agent that does not answer is the cause of what the others tell, once it is lost."""

from concurrent.futures import Future
from typing import Any

import pytest

from cluster.resilience import conductor, crew
from cluster.resilience.conductor import Conductor
from cluster.resilience.crew import Member
from cluster.workers.messages import Beat, Ended, Site, Status
from tests.cluster.resilience.local_agents import LocalPlacer


class Remote:
    """Answers with these statuses, one after another, then never again."""

    def __init__(self, number: int, *statuses: Status) -> None:
        self._site = Site(node=f"node-{number}", host=f"host-{number}", pid=0)
        self._statuses = iter(statuses)

    def site(self) -> Future[Site]:
        return done(self._site)

    def status(self, known: Status | None) -> Future[Status]:
        status = next(self._statuses, None)
        return Future() if status is None else done(status)

    def stacks(self) -> Future[str]:
        return done("at work")


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def group_of(*statuses: Status) -> Conductor:
    """A conductor whose first worker answers, again and again, and whose second is silent."""
    made = Conductor(LocalPlacer(2), [2], stage="pretrain")
    answering, silent = Remote(0, *(statuses * 1000)), Remote(1, Status(generation=0, beat=BEAT))
    made._group = [Member(answering), Member(silent)]  # type: ignore[arg-type]
    crew.look_at(made._group, 0.0)
    return made


BEAT = Beat(phase="step", seconds=30.0, step=12, began=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOST_SECONDS", 0.6)
    monkeypatch.setattr(conductor, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(conductor, "TICK_SECONDS", 0.05)


def test_of_a_hang() -> None:
    fault = group_of(Status(generation=0, beat=BEAT))._find_hang()
    assert (fault.cause, fault.rank, fault.host) == ("node", 1, "host-1")


def test_of_a_collective_that_failed() -> None:
    ended = Ended(how="raised", error="Connection reset by peer", of_group=True)
    fault = group_of(Status(generation=0, beat=BEAT, ended=ended))._find_fault()
    assert (fault.cause, fault.rank, fault.host) == ("node", 1, "host-1")
