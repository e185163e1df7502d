"""Agents in this process, each like a node of its own, to test conductors without Ray."""

import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

from cluster.resilience.crew import AgentLost, RemoteAgent
from cluster.workers.agent import Agent
from cluster.workers.messages import Order, Site, Status
from tests.cluster.resilience.groups import steps

T = TypeVar("T")
PREPARATION = pickle.dumps((steps.prepare, steps.run))


def worker_processes() -> list[psutil.Process]:
    """Those of the agents in this process."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "cluster.workers.child" in " ".join(process.cmdline())
    ]


class LocalAgent:
    """An agent whose calls run in threads. After `cut` it no longer answers, like a lost node."""

    def __init__(self, number: int, placer: "LocalPlacer") -> None:
        self._pool = ThreadPoolExecutor(4)
        self.is_cut = False
        self._agent = self._pool.submit(self._arrive, number, placer)

    def _arrive(self, number: int, placer: "LocalPlacer") -> Agent:
        while number >= placer.nodes:
            if self.is_cut:
                raise AgentLost("it never came")
            time.sleep(0.05)
        site = Site(node=f"node-{number}", host="127.0.0.1", pid=0)
        return Agent(site, PREPARATION, keep_spare=placer.keep_spare)

    def site(self) -> Future[Site]:
        return self._call(Agent.site)

    def free_port(self) -> Future[int]:
        return self._call(Agent.free_port)

    def start(self, order: Order) -> Future[None]:
        return self._call(lambda agent: agent.start(order))

    def status(self, known: Status | None) -> Future[Status]:
        return self._call(lambda agent: agent.status(known))

    def request_stop(self) -> Future[None]:
        return self._call(Agent.request_stop)

    def stacks(self) -> Future[str]:
        return self._call(Agent.stacks)

    def clear(self) -> Future[None]:
        return self._call(Agent.clear)

    def close(self) -> Future[None]:
        return self._call(Agent.close)

    def dismiss(self) -> None:
        if self._agent.done() and self._agent.exception() is None and not self.is_cut:
            self._agent.result().close()
        self.is_cut = True
        self._pool.shutdown()

    def cut(self) -> None:
        """Simulate a node that has lost power."""
        self.is_cut = True
        self._agent.result().close()

    def _call(self, method: Callable[[Agent], T]) -> Future[T]:
        def call() -> T:
            if self.is_cut:
                raise AgentLost("its node died")
            answer = method(self._agent.result())
            if self.is_cut:
                raise AgentLost("its node died")
            return answer

        return self._pool.submit(call)


@dataclass
class LocalPlacer:
    """Places agents, which start when there are nodes for them."""

    nodes: int
    keep_spare: bool = False
    agents: list[LocalAgent] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    avoided: list[frozenset[str]] = field(default_factory=list)

    def place(self, count: int, avoid: frozenset[str]) -> Sequence[RemoteAgent]:
        self.avoided.append(avoid)
        new = [LocalAgent(len(self.agents) + index, self) for index in range(count)]
        self.agents += new
        return new

    @property
    def usable_nodes(self) -> frozenset[str]:
        return frozenset(f"node-{number}" for number in range(self.nodes))

    def leaving(self) -> frozenset[str]:
        return frozenset(self.gone)

    def told_to_go(self, node: str) -> bool:
        return node in self.told

    def probe(self, node: str) -> Future[None]:
        return Future()

    def room(self) -> str:
        return f"the cluster has {self.nodes} nodes"


def job(function: Callable[..., None], argument: object) -> bytes:
    return pickle.dumps((function, argument))
