"""Which worker of a group that failed is the cause, and with what."""

import time
from collections.abc import Sequence

from cluster.resilience.crew import Member, ask_all, look_at
from cluster.resilience.faults import Fault
from cluster.resilience.roster import TICK_SECONDS
from cluster.resilience.watchdog import to_blame
from cluster.workers.messages import Status

SETTLE_SECONDS = 2.0
"""Seconds to wait after a failed collective for the report of the worker that caused it."""
STACK_SECONDS = 5.0


def statuses_of(group: Sequence[Member], generation: int) -> list[Status]:
    """What each worker of this generation last reported, by rank."""
    return [member.status_in(generation) for member in group]


def faults_of(group: Sequence[Member], generation: int) -> list[Fault]:
    """The faults reported so far, causes and consequences."""
    found = (member.fault(rank, generation) for rank, member in enumerate(group))
    return [fault for fault in found if fault is not None]


def find_fault(group: Sequence[Member], generation: int) -> Fault:
    """The fault that caused the others, such as failed collectives with a lost worker.

    At least one has been reported.
    """
    noticed = time.monotonic()
    while all(fault.of_group for fault in faults_of(group, generation)):
        if time.monotonic() > noticed + SETTLE_SECONDS and not _is_silent(group, noticed):
            break
        look_at(group, TICK_SECONDS)
    return min(faults_of(group, generation), key=lambda fault: fault.weight)


def find_hang(group: Sequence[Member], generation: int) -> Fault | None:
    """The worker that the others wait for, with the stacks of all; or a fault, if one is reported
    in the meantime; None if all workers have ended without one in the meantime.
    """
    noticed = time.monotonic()
    while _is_silent(group, noticed):
        look_at(group, TICK_SECONDS)
    if faults_of(group, generation):
        return find_fault(group, generation)
    statuses = statuses_of(group, generation)
    if all(status.ended is not None for status in statuses):
        return None
    rank = to_blame(statuses)
    stacks = ask_all([member.agent.stacks() for member in group], STACK_SECONDS)
    beat, suspended = statuses[rank].beat, statuses[rank].suspended
    how = "suspended by a signal" if suspended else f"no progress for {beat.seconds:.0f} s"
    after = f" after step {beat.step}" if beat.step >= 0 else ""
    member = group[rank]
    return Fault(
        cause="hang",
        rank=rank,
        node=member.node,
        host=member.host,
        phase=beat.phase,
        step=beat.step,
        error=f"hangs in phase {beat.phase!r}{after}: {how}",
        ago=beat.seconds,
        stacks={rank: text for rank, text in enumerate(stacks) if text},
    )


def _is_silent(group: Sequence[Member], since: float) -> bool:
    """Whether an agent has not answered since then, but is not lost yet: its node may be the cause
    of what the others tell.
    """
    return any(not each.lost and each.answered < since for each in group)
