"""An agent and its child, with children that are pages of memory only."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.resilience.crew import Member
from cluster.resilience.faults import Quarantine
from cluster.workers import agent as module
from cluster.workers.agent import Agent
from cluster.workers.beacon import Beacon, Page
from cluster.workers.messages import Ended, Order, Site, Status

SITE = Site(node="n", host="127.0.0.1", pid=0)
[ORDER] = Order.for_group([SITE], 0, generation=7, job=b"", use_gpu=False)


class FakeChild:
    """A child that trains forever; `may_start` holds its start up."""

    may_start = threading.Event()

    def __init__(self, preparation: bytes, changed: threading.Condition) -> None:
        self.may_start.wait(60)
        self.page = Page()
        self.beacon = Beacon.on(self.page.descriptor)
        self.ready = self.alive = True
        self.has_ended = False
        self.milestones: dict[str, float] = {}

    def obey(self, order: Order) -> None:
        self.beacon.began = 3
        self.beacon.stepped(5)

    def ended(self) -> Ended | None:
        return None

    def suspended(self) -> bool:
        return False

    def close(self) -> None:
        self.alive = False


@pytest.fixture(autouse=True)
def _fake_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Child", FakeChild)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(FakeChild, "may_start", threading.Event())
    FakeChild.may_start.set()


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + 60.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_driver_that_was_silent_is_told_what_became_of_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was suspended, say. Without a word it would wait for a child that is gone, forever."""
    agent = Agent(SITE, b"", keep_spare=False)
    agent.start(ORDER)
    child: Any = agent._child
    assert agent.status().ended is None
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    wait_for(lambda: not child.alive)
    status = agent.status()
    assert (status.generation, status.beat.step, status.beat.began) == (7, 5, 3)
    assert status.ended is not None
    assert status.ended.error == "its agent got no call for 0 s and ended it"
    member = Member(agent, site=SITE, status=status)  # type: ignore[arg-type]
    fault = member.fault(rank=0, generation=7)
    assert fault is not None
    assert not Quarantine(after=1).note(fault, {"n", "m"}), "no node is to blame"
    agent.start(ORDER)
    assert agent.status().ended is None
    agent.clear()
    assert agent.status() == Status(generation=7, spare=True)
    agent.close()


def test_a_request_to_stop_reaches_a_child_that_is_being_started() -> None:
    agent = Agent(SITE, b"", keep_spare=False)
    agent.start(ORDER)  # Takes the one that was there.
    FakeChild.may_start.clear()
    with ThreadPoolExecutor(1) as other:
        starting = other.submit(agent.start, ORDER)
        wait_for(lambda: agent._child is None)
        agent.request_stop()
        FakeChild.may_start.set()
        starting.result(60)
    child: Any = agent._child
    assert child.beacon.stop_requested
    agent.start(ORDER)
    later: Any = agent._child
    assert not later.beacon.stop_requested, "it was for the group before"
    agent.close()
