"""The members of a worker group, whose agents are asked for their status in parallel."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cluster.resilience.faults import Cause, Fault
from cluster.workers.messages import Order, Site, Status

T = TypeVar("T")
LOST_SECONDS = 10.0
"""An agent that does not answer for so long is lost, whatever the cluster says of its node."""


class AgentLost(RuntimeError):
    """The agent cannot be reached: its process, its node or the network has failed.

    `of_memory` is true if it was ended because its node ran out of memory, and `node_answers` if
    only the process has failed.
    """

    def __init__(
        self, message: str, *, of_memory: bool = False, node_answers: bool = False
    ) -> None:
        super().__init__(message)
        self.of_memory, self.node_answers = of_memory, node_answers


class RemoteAgent(Protocol):
    """An agent on some node. Calls return at once; their futures may raise `AgentLost`."""

    def site(self) -> Future[Site]: ...
    def free_port(self) -> Future[int]: ...
    def start(self, order: Order) -> Future[None]: ...
    def status(self, known: Status | None) -> Future[Status]: ...
    def request_stop(self) -> Future[None]: ...
    def stacks(self) -> Future[str]: ...
    def clear(self) -> Future[None]: ...

    def close(self) -> Future[None]: ...

    def dismiss(self) -> None:
        """Release its resources at once, even if the agent has not started or is lost."""


class Placer(Protocol):
    """Places agents on nodes."""

    @property
    def usable_nodes(self) -> frozenset[str]:
        """The nodes that are there and large enough for a worker."""

    def place(self, count: int, avoid: frozenset[str]) -> Sequence[RemoteAgent]:
        """Request `count` agents on nodes not in `avoid`; each starts once there is room for it."""

    def leaving(self) -> frozenset[str]:
        """Nodes that are about to go away: preempted or drained."""

    def told_to_go(self, node: str) -> bool:
        """Whether a node that is gone went in order: by SIGTERM, or because it was drained."""

    def probe(self, node: str) -> Future[None]:
        """Is done once the node answers, or with an error once the cluster gives it up."""

    def room(self) -> str:
        """The resources of the cluster, in words."""


@dataclass
class Member:
    """One worker, as its agent reports it.

    `lost` says in a line why it is no longer usable, and `trace` has the details; `answers` tells
    whether its agent responds, and `node_answers` whether its node does. `of_memory` is true if its
    node ended it for lack of memory. When it was requested, the nodes in `avoided` were excluded.
    """

    agent: RemoteAgent
    avoided: frozenset[str] = frozenset()
    site: Site | None = None
    status: Status | None = None
    lost: str = ""
    trace: str = ""
    answers: bool = True
    of_memory: bool = False
    node_answers: bool = True
    answered: float = field(default_factory=time.monotonic)
    arrived: float = 0.0
    _arriving: Future[Site] | None = None
    _asking: Future[Status] | None = None
    _starting: Future[None] | None = None

    def __post_init__(self) -> None:
        self._arriving = self.agent.site()

    @property
    def node(self) -> str:
        return "" if self.site is None else self.site.node

    @property
    def host(self) -> str:
        return "" if self.site is None else self.site.host

    @property
    def devices(self) -> str:
        return "" if self.site is None else self.site.devices

    def start(self, order: Order) -> None:
        """Send an order, and forget the status of the group before."""
        self.status = self._asking = None
        self._starting = self.agent.start(order)

    def status_in(self, generation: int) -> Status:
        """The status of the child of this generation; an empty one until it has reported."""
        if self.status is None or self.status.generation != generation:
            return Status(generation=generation)
        return self.status

    def fault(self, rank: int, generation: int) -> Fault | None:
        """The fault of this worker in a group, if it has one."""
        status = self.status_in(generation)
        ended = status.ended
        cause: Cause
        ago = time.monotonic() - self.answered
        if self.lost:
            cause = "memory" if self.of_memory else "node"
            error, trace = self.lost, self.trace
        elif ended is not None and ended.how == "raised":
            cause, error, trace = ended.cause, ended.error, ended.trace
        elif ended is not None and ended.how == "killed":
            cause = "memory" if ended.memory else "killed"
            error, trace = ended.error, ended.trace
        else:
            return None
        return Fault(
            cause=cause,
            rank=rank,
            node=self.node,
            host=self.host,
            phase=status.beat.phase,
            step=status.beat.step,
            error=error,
            trace=trace,
            of_group=ended is not None and ended.of_group,
            final=ended is not None and ended.final,
            ago=ago + (0.0 if ended is None else ended.ago),
        )

    def look(self) -> Future[Site] | Future[Status] | None:
        """Take an answer that has arrived and ask again; returns the future to wait for."""
        if self.lost:
            return None
        try:
            if self.site is None:
                assert self._arriving is not None
                if not self._arriving.done():
                    return self._arriving
                self.site = self._arriving.result()
                self.arrived = self.answered = time.monotonic()
            if self._starting is not None and self._starting.done():
                self._starting.result()
                self._starting = None
            if self._asking is not None and self._asking.done():
                self.status, self.answered = self._asking.result(), time.monotonic()
                self._asking = None
        except AgentLost as error:
            self.take_loss(error)
            return None
        if self._asking is None:
            self._asking = self.agent.status(self.status)
        elif time.monotonic() - self.answered > LOST_SECONDS:
            self.lost = f"no answer for {LOST_SECONDS:.0f} s"
            self.answers = self.node_answers = False
            return None
        return self._asking

    def take_loss(self, error: AgentLost) -> None:
        """Note that the agent is lost."""
        self.lost, self.answers = str(error), False
        self.of_memory, self.node_answers = error.of_memory, error.node_answers
        self.trace = str(error.__cause__ or "")


def look_at(members: Iterable[Member], seconds: float) -> None:
    """Update every member's status; waits at most `seconds` for an answer."""
    asked: list[Future[Any]] = [
        future for member in members if (future := member.look()) is not None
    ]
    if asked:
        wait(asked, timeout=seconds, return_when=FIRST_COMPLETED)
    else:
        time.sleep(seconds)
    for member in members:
        member.look()
    # Of an agent that has not started, the node is not known.
    silent = {member.node for member in members if member.node and not member.node_answers}
    for member in members:
        if member.node in silent and member.answers:
            # Its own time is not up yet; but nobody should wait for its answer to another call.
            member.lost = member.lost or "its node does not answer"
            member.answers = member.node_answers = False


def ask_all(futures: Sequence[Future[T]], seconds: float) -> list[T | None]:
    """The results that arrive within `seconds`; None in place of the others."""
    wait(futures, timeout=seconds)
    return [
        future.result() if future.done() and future.exception() is None else None
        for future in futures
    ]
