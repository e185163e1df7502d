"""What can befall a worker group, and how often it may before the run ends."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["error", "divergence", "killed", "memory", "hang", "node", "preemption"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One failure of a group, by the worker that is to blame.

    Attributes:
        cause: "error" is an exception that the worker raised, "divergence" weights that are not the
            other workers', "killed" a signal or exit.
        rank: Of the worker.
        node: Ray's id of its node, "" if that is unknown.
        phase: What it was doing.
        step: Optimizer steps that it had done.
        error: What happened, in a line.
        trace: A traceback or the end of its output, for the log.
        of_group: Whether it is a collective's error: another worker's end, seen from here.
        final: Whether it must not be mended, whatever the budget.
        ago: Seconds between the fault and when it was noticed.
        stacks: Of a hang, where the threads of every worker were, by rank.
    """

    cause: Cause
    rank: int
    node: str
    host: str
    phase: str
    step: int
    error: str
    trace: str = ""
    of_group: bool = False
    final: bool = False
    ago: float = 0.0
    stacks: Mapping[int, str] = field(default_factory=dict)

    def in_words(self) -> str:
        return f"worker {self.rank}: {self.error}"

    @property
    def weight(self) -> tuple[int, float]:
        """The first by this order is the cause when several workers of a group have failed.

        What is gone explains the errors of the others; of two alike the earlier comes first.
        """
        explains = ("node", "memory", "killed", "hang", "preemption", "divergence", "error")
        return explains.index(self.cause) + self.of_group, -self.ago


@dataclass
class Budget:
    """How many faults of each cause are mended before the run ends.

    A new checkpoint gives the whole budget back: a run that gets somewhere may go on for ever. A
    preemption is nobody's fault and is not counted.
    """

    each: int
    _spent: Counter[str] = field(default_factory=Counter)
    _saved: int = -1
    _last: tuple[str, int] | None = None

    def progress(self, saved: int) -> None:
        """There is a checkpoint of step `saved`."""
        if saved > self._saved:
            self._saved = saved
            self._spent.clear()

    def why_not(self, fault: Fault) -> str | None:
        """Count a fault; a sentence when it must not be mended again."""
        if fault.final:
            return "another group of workers would fare no better"
        this = (fault.error, fault.step)
        same, self._last = self._last == this, this if fault.cause == "error" else None
        if same:
            return "the same error came twice at the same step"
        if fault.cause == "preemption":
            return None
        self._spent[fault.cause] += 1
        if self._spent[fault.cause] <= self.each:
            return None
        if not self.each:
            return "cluster.max_failures is 0"
        return (
            f"it failed {self._spent[fault.cause]} times by cause {fault.cause!r} without a new "
            "checkpoint in between (cluster.max_failures)"
        )


@dataclass
class Quarantine:
    """Nodes that failed too often to be given workers again."""

    after: int = 3
    _failures: Counter[str] = field(default_factory=Counter)

    def note(self, fault: Fault) -> bool:
        """Count a fault against its node; whether this was one too many.

        An exception is the program's, and a node that goes on notice did nothing wrong. Of workers
        that see another's fault none is known to have failed.
        """
        if not fault.node or fault.of_group or fault.cause in ("error", "preemption"):
            return False
        self._failures[fault.node] += 1
        return self._failures[fault.node] == self.after

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(node for node, count in self._failures.items() if count >= self.after)
