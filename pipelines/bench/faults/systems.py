"""The systems that are compared, as they look from outside."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from cluster.laboratory.nodes import Laboratory, Node
from cluster.resilience import incidents
from pipelines.bench.faults import marks
from pipelines.bench.faults.recovery import Recovery
from pipelines.bench.faults.training import WORKERS
from pipelines.runtime.events import Point, Start, read_events

IDLE_SECONDS = 1.0


class System(Protocol):
    """A training at work, whose files are in a folder."""

    def steps(self) -> int:
        """Optimizer steps that are done."""

    def ready(self) -> bool:
        """Whether all is prepared for a fault."""

    def worker(self, rank: int) -> tuple[Node, psutil.Process]:
        """The node of a worker, and the process that trains."""

    def recovery(self, since: float) -> Recovery | None:
        """The recovery from the only fault since then; None while it is not over."""


@dataclass(frozen=True)
class Ours:
    """This project, with or without spare processes."""

    lab: Laboratory
    folder: Path
    warm_spare: bool

    def steps(self) -> int:
        points = [each for each in read_events(self.folder) if isinstance(each, Point)]
        return points[-1].step if points else 0

    def ready(self) -> bool:
        """Spares are ready when they have nothing to do any more."""
        if not self.warm_spare:
            return True
        spares = [child for node in self.lab.at_work() for child in self._children(node)[1:]]
        used = [spare.cpu_times() for spare in spares]
        time.sleep(IDLE_SECONDS)
        return len(spares) == WORKERS and used == [spare.cpu_times() for spare in spares]

    def worker(self, rank: int) -> tuple[Node, psutil.Process]:
        node = self.lab.at_work()[rank]
        return node, self._children(node)[0]

    def recovery(self, since: float) -> Recovery | None:
        for incident in incidents.read(self.folder):
            noticed = incident.time + incident.seconds["detection"]
            if noticed > since:
                seconds = {**incident.seconds, "detection": noticed - since}
                if not incident.recovered:
                    return None
                seconds["process"] = seconds.pop("placement")
                return Recovery(sum(seconds.values()), incident.lost_steps, seconds)
        return self._after_leaving(since)

    def _after_leaving(self, since: float) -> Recovery | None:
        """The recovery when a group has saved and left on notice, which is no incident."""
        events = read_events(self.folder)
        start = next((e for e in events if isinstance(e, Start) and e.time > since), None)
        if start is None:
            return None
        points = [each for each in events if isinstance(each, Point)]
        last = [each for each in points if each.time < start.time][-1]
        new = [each for each in points if each.time > start.time]
        if not new:
            return None
        return Recovery(new[0].time - max(since, last.time), max(0, last.step - start.step))

    def _children(self, node: Node) -> list[psutil.Process]:
        """The process that trains, and after it the spare."""
        return sorted(self.lab.children(node.name), key=lambda child: child.create_time())


@dataclass(frozen=True)
class RayTrain:
    """Plain Ray Train with DeepSpeed."""

    lab: Laboratory
    folder: Path

    def steps(self) -> int:
        return max((mark.step for mark in marks.read(self.folder)), default=0)

    def ready(self) -> bool:
        return True

    def worker(self, rank: int) -> tuple[Node, psutil.Process]:
        joined = [m for m in marks.read(self.folder) if (m.name, m.rank) == ("process group", rank)]
        [node] = [node for node in self.lab.nodes if node.host == joined[-1].host]
        return node, psutil.Process(joined[-1].pid)

    def recovery(self, since: float) -> Recovery | None:
        return marks.recovery_of(marks.read(self.folder), since)


@dataclass(frozen=True)
class Contender:
    """A system of the comparison: the module of its driver, and whether spares are kept."""

    module: str
    watch: Callable[[Laboratory, Path], System]
    warm_spare: bool = False


CONTENDERS: Mapping[str, Contender] = {
    "warm spare": Contender("ours", lambda lab, folder: Ours(lab, folder, True), warm_spare=True),
    "no spare": Contender("ours", lambda lab, folder: Ours(lab, folder, False)),
    "Ray Train": Contender("ray_train", RayTrain),
}
