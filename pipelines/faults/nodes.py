"""What the laboratory does to its nodes: faults that a worker cannot do to itself."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Timer

import psutil

from cluster.laboratory.network import Network
from cluster.laboratory.nodes import Laboratory, Node
from cluster.resilience import incidents
from cluster.resilience.faults import BLAMELESS, Quarantine
from pipelines.faults.kinds import LinkFault
from pipelines.faults.plan import FaultPlan
from pipelines.faults.schedule import Fired, Scheduled

FROZEN_SECONDS = 5.0
"""How long a raylet is suspended: shorter than Ray takes to give the node up."""


@dataclass(frozen=True)
class Acted:
    """A fault was done from outside at `time` (epoch seconds); `had_worker`: to a node at work.
    `problem` says why it could not be done, or is "".
    """

    time: float
    node: str = ""
    had_worker: bool = False
    problem: str = ""


class Nodes:
    """The nodes of a disturbed run; without a laboratory, nothing can be done to them."""

    def __init__(self, laboratory: Laboratory | None, plan: FaultPlan, run_dir: Path) -> None:
        self._laboratory, self._local, self._run_dir = laboratory, plan.cluster.local, run_dir
        self._pool = ThreadPoolExecutor(1)
        self._adding: Future[None] | None = None
        self._timers: list[Timer] = []
        self._cut_off: set[str] = set()

    def befall(self, fault: Scheduled, fired: Fired) -> Acted:
        """Do what a worker has asked for, to its node or to the one that the plan names."""
        lab = self._laboratory
        assert lab is not None
        if fault.what == "add node":
            self._add()
            return Acted(time.time())
        name = fault.node or fired.host
        node = next((each for each in lab.nodes if each.name == name), None)
        if node is None or (fault.kind.link is None and not lab.is_whole(node)):
            return Acted(time.time(), name, problem=f"{name} was not there any more")
        had_worker = bool(lab.children(node.name))
        now = time.time()
        match fault.what, fault.kind.link:
            case "kill raylet", _:
                lab.raylet(node).kill()
            case "freeze node", _:
                lab.freeze(node)
            case "preempt node", _:
                lab.preempt(node)
            case "freeze raylet", _:
                raylet = lab.raylet(node)
                raylet.suspend()
                self._later(FROZEN_SECONDS, partial(_resume, raylet))
            case _, LinkFault() as link:
                self._disturb_link(node, link)
            case _:
                raise AssertionError(fault.what)
        return Acted(now, node.name, had_worker)

    def _disturb_link(self, node: Node, link: LinkFault) -> None:
        assert self._laboratory is not None
        network = self._laboratory.network
        assert network is not None
        if node.name in self._cut_off:
            return
        if link.kilobits is None:
            network.cut(node.name, link.directions)
        else:
            network.slow_down(node.name, link.kilobits)
        if link.seconds is None:
            self._cut_off.add(node.name)
        else:
            self._later(link.seconds, partial(self._restore_link, network, node))

    def _restore_link(self, network: Network, node: Node) -> None:
        if node.name not in self._cut_off:  # For good, by a later fault.
            network.restore(node.name)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        timer = Timer(seconds, act)
        timer.start()
        self._timers.append(timer)

    def replace_lost(self) -> None:
        """Have as many nodes as the plan says that run and may get work."""
        lab, local = self._laboratory, self._local
        if lab is None or local is None or not local.replace:
            return
        if self._adding is not None and not self._adding.done():
            return
        worn = self._worn_out()
        for node in [node for node in lab.nodes if node.host in worn]:
            if not lab.children(node.name):
                lab.end(node)
        good = [node for node in lab.nodes if node.host not in worn and self._may_work(node)]
        if len(good) < local.nodes:
            self._add()

    def close(self) -> None:
        """Wait for what has been begun.

        Raises:
            RuntimeError: When a node did not start, with what Ray printed.
        """
        for timer in self._timers:
            timer.join()
        self._pool.shutdown()
        if self._adding is not None:
            self._adding.result()

    def _may_work(self, node: Node) -> bool:
        assert self._laboratory is not None
        return node.name not in self._cut_off and self._laboratory.is_whole(node)

    def _worn_out(self) -> set[str]:
        """Hosts that get no more work, because they have failed too often."""
        counted = [each for each in incidents.read(self._run_dir) if each.cause not in BLAMELESS]
        failures = Counter(each.host for each in counted)
        return {host for host, count in failures.items() if count >= Quarantine().after}

    def _add(self) -> None:
        """Start another node, which takes seconds, while the run goes on."""
        if self._adding is not None:
            self._adding.result()
        assert self._laboratory is not None
        self._adding = self._pool.submit(self._laboratory.add, 1)


def _resume(raylet: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        raylet.resume()
