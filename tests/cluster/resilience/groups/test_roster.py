"""Where replacements of lost agents are requested, with agents that are only futures."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from cluster.resilience import crew
from cluster.resilience import roster as module
from cluster.resilience.crew import AgentLost, look_at
from cluster.resilience.roster import Roster
from cluster.workers.messages import Order, Site, Status

T = TypeVar("T")


def done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future


@dataclass
class Node:
    """A node with room for so many agents."""

    room: int = 1
    frozen: bool = False
    died: AgentLost | None = None


@dataclass
class Agent:
    node: str | None
    nodes: dict[str, Node]

    def site(self) -> Future[Site]:
        return Future() if self.node is None else done(Site(node=self.node, host=self.node, pid=0))

    def status(self, known: Status | None) -> Future[Status]:
        assert self.node is not None
        node = self.nodes[self.node]
        answer: Future[Status] = Future()
        if node.died is not None:
            answer.set_exception(node.died)
        elif not node.frozen:
            answer.set_result(Status(generation=0))
        return answer

    def free_port(self) -> Future[int]:
        raise NotImplementedError

    def start(self, order: Order) -> Future[None]:
        raise NotImplementedError

    def request_stop(self) -> Future[None]:
        raise NotImplementedError

    def stacks(self) -> Future[str]:
        raise NotImplementedError

    def clear(self) -> Future[None]:
        raise NotImplementedError

    def close(self) -> Future[None]:
        assert self.node is not None, "an agent that has not started would not answer"
        assert not self.nodes[self.node].frozen, "nor would one on a frozen node"
        return done(None)

    def dismiss(self) -> None:
        if self.node is not None:
            self.nodes[self.node].room += 1


@dataclass
class Cluster:
    """Like Ray: an agent is placed on any node with room that its request does not exclude."""

    machines: dict[str, Node]
    requests: list[frozenset[str]] = field(default_factory=list)
    probes: dict[str, Future[None]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)

    def place(self, count: int, avoid: frozenset[str]) -> Sequence[Agent]:
        self.requests.append(avoid)
        return [Agent(self._take(avoid), self.machines) for _ in range(count)]

    def _take(self, avoid: frozenset[str]) -> str | None:
        for name, node in self.machines.items():
            if node.room and name not in avoid:
                node.room -= 1
                return name
        return None

    @property
    def usable_nodes(self) -> frozenset[str]:
        return frozenset(self.machines)

    def probe(self, node: str) -> Future[None]:
        assert node not in self.probes, "one probe is enough"
        self.probes[node] = Future()
        return self.probes[node]

    def leaving(self) -> frozenset[str]:
        return frozenset(self.gone)

    def told_to_go(self, node: str) -> bool:
        return False

    def room(self) -> str:
        return "the cluster has nodes"


def assembled(cluster: Cluster) -> Roster:
    roster = Roster(cluster, [2], 60.0, say=lambda sentence: None)
    assert [member.node for member in roster.assemble(lambda: None)] == ["a", "b"]
    return roster


def lose(roster: Roster, node: str) -> None:
    while not any(member.lost for member in roster.members if member.node == node):
        look_at(roster.members, 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "LOST_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_silent_node_gets_no_agent_until_it_answers() -> None:
    cluster = Cluster({"a": Node(), "b": Node()})
    roster = assembled(cluster)
    cluster.machines["b"].frozen = True
    lose(roster, "b")
    looks: list[int] = []

    def thaw() -> None:
        looks.append(len(roster.present()))
        if len(looks) == 3:
            cluster.machines["b"].frozen = False
            cluster.probes["b"].set_result(None)

    assert [member.node for member in roster.assemble(thaw)] == ["a", "b"]
    assert looks[:3] == [1, 1, 1], "nothing was placed on it"
    assert cluster.requests == [frozenset(), {"b"}, frozenset()]


@pytest.mark.usefixtures("impatient")
def test_all_workers_of_a_silent_node_are_lost_with_the_first() -> None:
    cluster = Cluster({"a": Node(room=2), "b": Node(room=2)})
    roster = Roster(cluster, [2], 60.0, say=lambda sentence: None)
    assert [member.node for member in roster.assemble(lambda: None)] == ["a", "a"]
    cluster.machines["a"].frozen = True
    look_at(roster.members, 0.0)  # Take what has been answered before.
    roster.members[1].answered += 1000.0  # Then this one's time is not up.
    lose(roster, "a")
    assert [member.lost for member in roster.members] == [
        "no answer for 0 s",
        "its node does not answer",
    ]
    assert [member.node for member in roster.assemble(lambda: None)] == ["b", "b"]


@pytest.mark.usefixtures("impatient")
def test_another_node_takes_the_place_of_a_silent_one() -> None:
    cluster = Cluster({"a": Node(), "b": Node(), "c": Node()})
    roster = assembled(cluster)
    cluster.machines["b"].frozen = True
    lose(roster, "b")
    assert [member.node for member in roster.assemble(lambda: None)] == ["a", "c"]
    cluster.probes["b"].set_exception(AgentLost("its node died"))
    assert [member.node for member in roster.assemble(lambda: None)] == ["a", "c"]


def test_a_node_whose_agent_alone_has_died_gets_the_next_one() -> None:
    cluster = Cluster({"a": Node(), "b": Node()})
    roster = assembled(cluster)
    cluster.machines["b"].died = AgentLost("its agent's process died", node_answers=True)
    lose(roster, "b")
    cluster.machines["b"].died = None
    assert [member.node for member in roster.assemble(lambda: None)] == ["a", "b"]
    assert cluster.probes == {}


def test_workers_whose_node_is_about_to_go_are_not_lost_before_they_have_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ARRIVAL_SECONDS", 0.0)
    cluster = Cluster({"a": Node(), "b": Node()})
    roster = Roster(cluster, [2, 3], 60.0, say=lambda sentence: None)
    group = roster.assemble(lambda: None)
    cluster.gone = {"b"}  # Between the question whether a node is leaving, and this one.
    assert not roster.has_more_than(group)
    assert [member.lost for member in group] == ["", ""]
    assert roster.leaving(group)


def test_when_time_is_up_those_that_are_there_are_enough() -> None:
    """Agents of a large cluster may come one by one for longer than the time there is."""
    cluster = Cluster({"a": Node()})
    roster = Roster(cluster, [1, 2], start_timeout=0.0, say=lambda sentence: None)
    assert [member.node for member in roster.assemble(lambda: None)] == ["a"]
