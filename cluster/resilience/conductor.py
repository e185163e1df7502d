"""The conductor runs one group of workers after another until the job is done.

    assemble agents -> give orders to their children -> watch -> done
          ^                                               | fault, stop
          +------ note it, end the group's children <-----+

It runs in the driver and talks to agents through the interfaces in `cluster.resilience.crew`, so it
works the same on Ray and, in tests, on threads.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from cluster.resilience.crew import LOST_SECONDS, Member, Placer, ask_all, look_at
from cluster.resilience.diagnosis import faults_of, find_fault, find_hang, statuses_of
from cluster.resilience.faults import Budget, Fault
from cluster.resilience.incidents import Incident
from cluster.resilience.recovery import Recovery
from cluster.resilience.roster import CLOSE_SECONDS, TICK_SECONDS, Kept, Roster, dismiss
from cluster.resilience.watchdog import FACTOR, Limits, overdue
from cluster.workers.messages import Order, Status

LEAVE_SECONDS = 15.0
"""An interrupted group that makes no progress for this long is not waited for any longer."""

log = logging.getLogger(__name__)


class GroupFailed(RuntimeError):
    """A group failed and no new one is started; the message says how it failed and why."""


class Why(Enum):
    """Why a healthy group is asked to save and stop."""

    LEAVE = "the driver was interrupted"
    NODE = "a node is about to go"
    GROW = "there is room for more workers"


@dataclass
class Conductor:
    """Runs a job on groups of workers.

    Args:
        placer: Places agents on the cluster.
        sizes: Allowed numbers of workers, ascending; a group gets the largest there is room for.
        stage: A name for messages and incidents.
        max_failures: Faults of one cause to recover from between two checkpoints.
        start_timeout: Seconds to wait for agents.
        use_gpu: Whether a worker has a GPU.
        limits: After how long a worker counts as hung.
        note: Called with every incident, when it happens and again when training continues.
        say: Called with sentences for the screen.
        tick: Called a few times a second.
        kept: What the last job left, and what this one leaves; without it, no agent stays.
    """

    placer: Placer
    sizes: Sequence[int]
    stage: str
    max_failures: int = 3
    start_timeout: float = 300.0
    use_gpu: bool = False
    limits: Limits = field(default_factory=Limits)
    note: Callable[[Incident], None] = lambda incident: None
    say: Callable[[str], None] = lambda sentence: None
    tick: Callable[[], None] = lambda: None
    kept: Kept | None = None

    def __post_init__(self) -> None:
        before = self.kept or Kept()
        self.roster = Roster(
            self.placer,
            self.sizes,
            self.start_timeout,
            self.say,
            before.quarantine,
            before.members,
            before.probes,
        )
        self._group: list[Member] = []
        self._generation = before.generation
        self._budget = Budget(self.max_failures)
        self._recovery: Recovery | None = None
        self._why: Why | None = None
        self._steps: list[tuple[int, int]] = []
        self._moved = 0.0
        self._has_trained = False

    def run(self, job: bytes) -> None:
        """Run groups until the job's function has returned on all workers of one.

        Raises:
            GroupFailed: When a fault must not, or can no longer, be recovered from.
            NoRoom: When too few agents have arrived in time.
            KeyboardInterrupt: After the workers have saved and stopped; at once the second time.
        """
        stay: list[Member] = []
        try:
            self._run_groups(job)
            if self.kept is not None:
                stay = self.roster.stand_by()
        finally:
            dismiss([member for member in self.roster.members if member not in stay])
            if self.kept is not None:
                self.kept.members, self.kept.generation = stay, self._generation

    def _run_groups(self, job: bytes) -> None:
        while True:
            self._group = self.roster.assemble(lambda: self.tick())
            self._order(job)
            fault = self._watch()
            if self._why is Why.LEAVE:
                raise KeyboardInterrupt
            if fault is not None:
                self._take_down(fault)
            elif self._why is None:
                return
            self._why = None

    def _order(self, job: bytes) -> None:
        """Send every worker of the group its order."""
        self._generation += 1
        if self._recovery is not None:
            self._recovery.assembled(len(self._group))
        sites = [member.site for member in self._group if member.site is not None]
        [port] = ask_all([self._group[0].agent.free_port()], LOST_SECONDS)
        if port is None:
            self._group[0].lost, self._group[0].answers = "it does not answer", False
            return
        orders = Order.for_group(sites, port, self._generation, job, use_gpu=self.use_gpu)
        for member, order in zip(self._group, orders, strict=True):
            member.start(order)

    def _watch(self) -> Fault | None:
        """Wait until the group ends; returns the fault, or None when there was none."""
        while True:
            try:
                look_at(self._group, TICK_SECONDS)
                self.tick()
                self._ask_to_stop(self._reason_to_stop())
            except KeyboardInterrupt:
                if self._why is Why.LEAVE:
                    raise  # A second interrupt ends the run at once.
                self.say("saving a checkpoint of this step; once more to stop at once")
                self._ask_to_stop(Why.LEAVE)
                continue
            statuses = self._statuses()
            self._note_progress(statuses)
            if faults_of(self._group, self._generation):
                return find_fault(self._group, self._generation)
            if all(status.ended is not None for status in statuses):
                stopped = any(s.ended is not None and s.ended.how == "stopped" for s in statuses)
                if not stopped:
                    self._why = None  # It finished before the request to stop arrived.
                return None
            hangs = any(overdue(status, self.limits) for status in statuses)
            if self._why is Why.LEAVE and self._is_stuck(statuses):
                self.say("the workers make no progress and are ended; the last checkpoint remains")
                hangs = True
            if hangs and (hang := find_hang(self._group, self._generation)) is not None:
                return hang

    def _is_stuck(self, statuses: Sequence[Status]) -> bool:
        """Whether, since the request to stop, no worker has made progress and none is saving."""
        now = time.monotonic()
        steps = [(status.beat.step, status.beat.passes) for status in statuses]
        if steps != self._steps or any(s.beat.phase == "checkpoint" for s in statuses):
            self._steps, self._moved = steps, now
        usual = max(status.beat.usual for status in statuses)
        return now - self._moved > max(LEAVE_SECONDS, FACTOR * usual)

    def _statuses(self) -> list[Status]:
        return statuses_of(self._group, self._generation)

    def _reason_to_stop(self) -> Why | None:
        if self._why is not None:
            return None
        if self.roster.leaving(self._group):
            return Why.NODE
        if self.roster.has_more_than(self._group):
            return Why.GROW
        return None

    def _ask_to_stop(self, why: Why | None) -> None:
        if why is not None:
            self._why, self._moved = why, time.monotonic()
            if why is not Why.LEAVE:
                self.say(f"{why.value}: saving a checkpoint of this step to go on from")
            for member in self._group:
                member.agent.request_stop()

    def _note_progress(self, statuses: Sequence[Status]) -> None:
        self._has_trained |= any(0 <= s.beat.began < s.beat.step for s in statuses)
        self._budget.progress(max(status.beat.saved for status in statuses))
        if self._recovery is not None and self._recovery.over(statuses):
            self.note(self._recovery.incident)
            self._recovery = None

    def _take_down(self, fault: Fault) -> None:
        """Record a fault, and end the rest of its group.

        Raises:
            GroupFailed: When the fault must not, or can no longer, be recovered from.
        """
        if fault.cause == "node" and self.placer.told_to_go(fault.node):
            fault = replace(fault, cause="preemption")
        if fault.cause == "node" and self._has_trained:
            fault = replace(fault, final=False)
        self._recovery = Recovery.of(
            fault, self.stage, self._generation, self._statuses(), self._recovery
        )
        self.note(self._recovery.incident)
        log.error("%s\n%s", fault.in_words(), fault.trace)
        for rank, text in fault.stacks.items():
            log.error("worker %d was at\n%s", rank, text)
        ask_all([member.agent.clear() for member in self._group if not member.lost], CLOSE_SECONDS)
        self._recovery.taken_down()
        if fault.final:
            raise GroupFailed(f"worker {fault.rank} on {fault.host}: {fault.error}")
        why_not = self._budget.why_not(fault)
        if why_not is not None:
            raise GroupFailed(
                f"the worker group failed for good:\n  {fault.in_words()}\n  ({why_not})"
            )
        self.say(f"{fault.in_words()}; going on from the last checkpoint")
        if self.roster.quarantine.note(fault, self.placer.usable_nodes):
            self.say(f"node {fault.host} failed too often: it gets no more work")
