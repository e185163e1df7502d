"""The faults of a worker group, and how many of them a run recovers from."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["error", "spike", "divergence", "killed", "memory", "hang", "node", "preemption"]

EXPLAINS: Sequence[Cause] = (
    *("node", "memory", "killed", "hang", "preemption", "divergence", "spike", "error"),
)
"""When several workers of a group fail, a cause explains those that come after it."""


BLAMELESS: Sequence[Cause] = ("error", "spike", "preemption")
"""Causes that do not count against a node: exceptions and spikes of the loss are the program's
fault, and a preempted node is not broken.
"""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One failure of a group, described by the worker that caused it.

    Attributes:
        cause: "error" is an exception that the worker raised, "spike" a loss that has risen,
            "divergence" weights that differ from the other workers', "killed" a signal or exit.
        rank: The worker's rank.
        node: Ray's id of its node, "" if that is unknown.
        phase: What the worker was doing.
        step: Optimizer steps that it had done.
        error: What happened, in a line.
        trace: A traceback or the end of its output, for the log.
        of_group: Whether a collective failed because another worker died.
        final: Whether to end the run, whatever the budget.
        ago: Seconds from the fault until it was noticed.
        stacks: After a hang, the thread stacks of every worker, by rank.
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
        """Sort key: when several workers of a group have failed, the first fault is the cause.

        A worker that is gone explains the errors of the others. Between faults of the same kind,
        the earlier one comes first.
        """
        return EXPLAINS.index(self.cause) + self.of_group, -self.ago


@dataclass
class Budget:
    """How many faults of each cause a run recovers from before it ends; final ones are not for it.

    Every new checkpoint restores the whole budget, so the faults of a whole run are not limited.
    Preemptions are not counted.
    """

    each: int
    _spent: Counter[str] = field(default_factory=Counter)
    _saved: int = -1
    _last: tuple[str, int] | None = None

    def progress(self, saved: int) -> None:
        """Restore the budget if the checkpoint of step `saved` is a new one."""
        if saved > self._saved:
            self._saved = saved
            self._spent.clear()

    def why_not(self, fault: Fault) -> str | None:
        """Count a fault; returns a sentence when the run must end, else None."""
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
    """Nodes that have failed too often and get no more workers."""

    after: int = 3
    nodes: frozenset[str] = frozenset()
    _failures: Counter[str] = field(default_factory=Counter)

    def note(self, fault: Fault, there: Set[str]) -> bool:
        """Count a fault against its node; returns whether that puts the node in quarantine.

        The last of the nodes that are `there` and not in quarantine stays in use: waiting for
        another would be in vain. Not counted are causes that are `BLAMELESS`, and workers that only
        saw a collective fail, because the failed one is unknown.
        """
        if not fault.node or fault.of_group or fault.cause in BLAMELESS:
            return False
        self._failures[fault.node] += 1
        if self._failures[fault.node] < self.after or not there - self.nodes - {fault.node}:
            return False
        new = fault.node not in self.nodes
        self.nodes |= {fault.node}
        return new
