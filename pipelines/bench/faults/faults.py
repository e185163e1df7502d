"""The faults, and how the cluster is mended after each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.laboratory.nodes import Laboratory, Node
from pipelines.bench.faults.training import WORKERS, raise_order


@dataclass(frozen=True)
class Victim:
    """A worker, its node, and the folder of its training."""

    lab: Laboratory
    node: Node
    process: psutil.Process
    rank: int
    folder: Path


@dataclass(frozen=True)
class Fault:
    """What happens to a worker; `takes_node` when its node is gone afterwards."""

    inject: Callable[[Victim], None]
    takes_node: bool = False

    @property
    def nodes(self) -> int:
        """How many nodes the cluster has before it: one more where it takes one."""
        return WORKERS + self.takes_node


FAULTS: Mapping[str, Fault] = {
    "worker killed": Fault(lambda victim: victim.process.kill()),
    "worker raises": Fault(lambda victim: raise_order(victim.folder, victim.rank).touch()),
    "worker stopped": Fault(lambda victim: victim.process.suspend()),
    "node lost": Fault(lambda victim: victim.lab.raylet(victim.node).kill(), takes_node=True),
    "preemption": Fault(lambda victim: victim.lab.preempt(victim.node), takes_node=True),
}
