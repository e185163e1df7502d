"""An agent that does not answer is the cause of what the others tell, once it is lost."""

from concurrent.futures import Future
from typing import Any

import pytest

from cluster.resilience import crew, diagnosis
from cluster.resilience.crew import AgentLost, Member
from cluster.resilience.diagnosis import find_fault, find_hang
from cluster.workers.messages import Beat, Ended, Site, Status


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


def group_of(*statuses: Status) -> list[Member]:
    """Its first worker answers, again and again, and its second is silent."""
    answering, silent = Remote(0, *(statuses * 1000)), Remote(1, Status(generation=0, beat=BEAT))
    group = [Member(answering), Member(silent)]  # type: ignore[arg-type]
    crew.look_at(group, 0.0)
    return group


BEAT = Beat(phase="step", seconds=30.0, step=12, began=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOST_SECONDS", 0.6)
    monkeypatch.setattr(diagnosis, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(diagnosis, "TICK_SECONDS", 0.05)


def test_of_a_hang() -> None:
    fault = find_hang(group_of(Status(generation=0, beat=BEAT)), 0)
    assert fault is not None
    assert (fault.cause, fault.rank, fault.host) == ("node", 1, "host-1")


def test_of_a_collective_that_failed() -> None:
    ended = Ended(how="raised", error="Connection reset by peer", of_group=True)
    fault = find_fault(group_of(Status(generation=0, beat=BEAT, ended=ended)), 0)
    assert (fault.cause, fault.rank, fault.host) == ("node", 1, "host-1")


def test_workers_that_end_while_they_are_looked_at_do_not_hang() -> None:
    hangs = Status(generation=0, beat=BEAT)
    ends = [Status(generation=0, beat=BEAT, ended=Ended(how="done"))] * 100
    group = [Member(Remote(number, hangs, *ends)) for number in range(2)]  # type: ignore[arg-type]
    crew.look_at(group, 0.0)
    assert find_hang(group, 0) is None


class Pending(Remote):
    """An agent that has not started."""

    def __init__(self, arriving: Future[Site]) -> None:
        self._arriving = arriving

    def site(self) -> Future[Site]:
        return self._arriving


def test_an_agent_that_cannot_start_says_nothing_of_others_that_have_not_started() -> None:
    fails: Future[Site] = Future()
    fails.set_exception(AgentLost("its node died"))
    group = [Member(Pending(fails)), Member(Pending(Future()))]  # type: ignore[arg-type]
    crew.look_at(group, 0.0)
    assert [member.lost for member in group] == ["its node died", ""]
