"""Which workers can join a group: agents that run, agents still awaited, and nodes to avoid."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cluster.resilience.crew import Member, Placer, ask_all, look_at
from cluster.resilience.faults import Quarantine

TICK_SECONDS = 0.25
ARRIVAL_SECONDS = 5.0
"""An elastic group starts once no agent has arrived for so long, without the missing ones."""
SAY_SECONDS = 5.0
CLOSE_SECONDS = 10.0


class NoRoom(RuntimeError):
    """Too few agents started in time."""


@dataclass
class Kept:
    """What a job leaves to the next one of the same driver.

    Attributes:
        members: Agents that stand by, with new children that wait for an order.
        quarantine: How often each node has failed.
        generation: The number of the newest group. It never falls, so that an agent's late report
            on a group of one job is not taken for one of the next.
        probes: Of the nodes that did not answer.
    """

    members: list[Member] = field(default_factory=list)
    quarantine: Quarantine = field(default_factory=Quarantine)
    generation: int = 0
    probes: dict[str, Future[None]] = field(default_factory=dict)

    def dismiss(self) -> None:
        """End the agents, and release their resources."""
        members, self.members = self.members, []
        dismiss(members)


@dataclass
class Roster:
    """The members of a job, one for each worker that its largest group may have.

    Args:
        placer: Places agents on the cluster.
        sizes: Allowed numbers of workers, ascending.
        start_timeout: Seconds to wait for agents.
        say: Called with sentences for the screen.
        quarantine: How often each node has failed.
        members: Agents that are there already; those that are too many are dismissed.
        probes: Of the nodes that did not answer, which are avoided until they do.
    """

    placer: Placer
    sizes: Sequence[int]
    start_timeout: float
    say: Callable[[str], None]
    quarantine: Quarantine = field(default_factory=Quarantine)
    members: list[Member] = field(default_factory=list)
    probes: dict[str, Future[None]] = field(default_factory=dict)
    _placed: float = float("-inf")

    def assemble(self, tick: Callable[[], None]) -> list[Member]:
        """Members, by rank, for the largest allowed group that there is room for.

        Raises:
            NoRoom: When too few agents have arrived within `start_timeout`.
        """
        began = said = time.monotonic()
        while True:
            self._replace_lost()
            self._dismiss_surplus()
            look_at(self.members, TICK_SECONDS)
            tick()
            here = self.present()
            size = max((size for size in self.sizes if size <= len(here)), default=0)
            now = time.monotonic()
            arrived = max((member.arrived for member in here), default=began)
            quiet = now - max(arrived, self._placed) > ARRIVAL_SECONDS
            late = now - began > self.start_timeout
            if size == self.sizes[-1] or (size and (quiet or late)):
                return here[:size]
            lacking = f"waiting for {self.sizes[0] - len(here)} more of {self.sizes[0]} workers"
            if late:
                raise NoRoom(f"{lacking} for {now - began:.0f} s; {self.placer.room()}")
            if now - said > SAY_SECONDS and not size:
                self.say(f"{lacking}, {now - began:.0f} s; {self.placer.room()}")
                said = now

    def present(self, at_work: Sequence[Member] = ()) -> list[Member]:
        """Members whose agents run; those of a node are adjacent. Those on nodes to be avoided are
        lost, except those `at_work`, which are first asked to save and stop.
        """
        avoid = self._avoid()
        for member in self.members:
            if member.node in avoid and member not in at_work:
                member.lost = member.lost or "its node is leaving, silent, or fails too often"
        here = [member for member in self.members if member.site is not None and not member.lost]
        return sorted(here, key=lambda member: (member.host, member.node, member.devices))

    def has_more_than(self, group: Sequence[Member]) -> bool:
        """Whether the members present could form a larger group than this one."""
        if len(group) == self.sizes[-1]:
            return False
        self._replace_lost(group)  # A pending agent may have been placed on a dead node.
        look_at([member for member in self.members if member not in group], 0.0)
        here = len(self.present(group))
        return any(len(group) < size <= here for size in self.sizes)

    def leaving(self, group: Sequence[Member]) -> bool:
        """Whether a node of the group is about to go away."""
        leaving = self.placer.leaving()
        return any(member.node in leaving for member in group)

    def stand_by(self) -> list[Member]:
        """End the children of a job that is done; returns the members that the next can have."""
        here = self.present()
        clearing = [member.agent.clear() for member in here]
        ask_all(clearing, CLOSE_SECONDS)
        cleared = [
            member
            for member, future in zip(here, clearing, strict=True)
            if future.done() and future.exception() is None
        ]
        awaited = [member for member in self.members if member.site is None and not member.lost]
        return cleared + awaited

    def _replace_lost(self, group: Sequence[Member] = ()) -> None:
        """Request replacements for lost agents, except for those of the group at work; and again
        those that have not started, when other nodes are to be avoided than at their request.
        """
        self._probe_silent_nodes()
        avoid = self._avoid()
        lost = [
            member
            for member in self.members
            if member not in group
            and (member.lost or (member.site is None and member.avoided != avoid))
        ]
        dismiss(lost)
        self.members = [member for member in self.members if member not in lost]
        missing = self.sizes[-1] - len(self.members)
        if missing > 0:
            agents = self.placer.place(missing, avoid)
            self.members += [Member(agent, avoid) for agent in agents]
            self._placed = time.monotonic()

    def _dismiss_surplus(self) -> None:
        """Let go of agents beyond the largest group, first of those that have not started."""
        here = self.present()
        awaited = [member for member in self.members if member not in here]
        size = self.sizes[-1]
        dismiss([*here, *awaited][size:])
        self.members = [*here, *awaited][:size]

    def _probe_silent_nodes(self) -> None:
        """Avoid the nodes of lost agents until they answer a probe: for about a minute, Ray takes a
        node that is frozen or cut off for a healthy one with free CPUs.
        """
        for member in self.members:
            if member.node and not member.node_answers and member.node not in self.probes:
                self.probes[member.node] = self.placer.probe(member.node)
        for node, probe in list(self.probes.items()):
            if probe.done() and probe.exception() is None:
                del self.probes[node]

    def _avoid(self) -> frozenset[str]:
        return self.quarantine.nodes | self.placer.leaving() | self.probes.keys()


def dismiss(members: Sequence[Member]) -> None:
    """End agents and their children, and release their resources."""
    # One that has not started cannot answer, and has no children.
    started = [member for member in members if member.answers and member.site is not None]
    ask_all([member.agent.close() for member in started], CLOSE_SECONDS)
    for member in members:
        member.agent.dismiss()
