"""How a child ended, as its agent tells it, and what counts as a hang."""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.resilience.crew import AgentLost, Member
from cluster.resilience.watchdog import Limits, overdue
from cluster.workers import memory_kills as module
from cluster.workers import process
from cluster.workers.beacon import Beacon, Page
from cluster.workers.memory_kills import memory_kills
from cluster.workers.messages import Ended, Site, Status
from tests.cluster.resilience.groups.local_agents import LocalAgent, LocalPlacer

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def die(argument: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare_to_die() -> None:
    die(None)


def die_in_a_message() -> None:
    messages = int(sys.argv[sys.argv.index("--messages") + 1])
    os.write(messages, b'{"ended": {"how": "rai')
    die(None)


@pytest.mark.parametrize(
    ("prepare", "kills", "memory"),
    [
        (prepare_to_die, [3, 4], True),
        (prepare_to_die, [3, 3], False),
        (die_in_a_message, [3, 3], False),
    ],
)
def test_a_kill_by_the_kernel_is_told_from_any_other(
    prepare: Callable[[], None],
    kills: list[int],
    memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: kills.pop(0))
    changed = threading.Condition()
    child = process.Child(pickle.dumps((prepare, die)), changed)
    try:
        with changed:
            assert changed.wait_for(lambda: child.has_ended, 60)
        ended = child.ended()
    finally:
        child.close()
    assert ended is not None
    assert (ended.how, ended.error, ended.memory) == ("killed", "killed by SIGKILL", memory)


@pytest.mark.parametrize(
    ("group", "counter", "content"),
    [
        ("0::/pod/worker", "pod/worker/memory.events", EVENTS),
        ("0::/", "memory.events", EVENTS),
        ("4:memory:/pod\n0::/", "memory/pod/memory.oom_control", CONTROL),
        ("4:memory:/not/in/here\n0::/", "memory/memory.oom_control", CONTROL),
        ("0::/", "vmstat", "nr_free_pages 9\noom_kill {}\n"),
    ],
)
def test_the_kernels_count_is_found(
    group: str, counter: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, path in (("OWN_GROUPS", "cgroup"), ("GROUPS", ""), ("MACHINE", "vmstat")):
        monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "cgroup").write_text(group + "\n")
    assert memory_kills() == 0, "the kernel does not say"
    (tmp_path / counter).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / counter).write_text(content.format(5))
    assert memory_kills() == 5


@pytest.mark.parametrize(
    ("ended", "cause"),
    [
        (Ended(how="raised", error="KeyError: 1"), "error"),
        (Ended(how="raised", error="Diverged: after step 5", cause="divergence"), "divergence"),
        (Ended(how="killed", error="exit code 3"), "killed"),
        (Ended(how="killed", error="killed by SIGKILL"), "killed"),
        (Ended(how="killed", error="killed by SIGKILL", memory=True), "memory"),
        (AgentLost("its node died"), "node"),
        (AgentLost("the node was low on memory", of_memory=True), "memory"),
        (Ended(how="done"), None),
        (Ended(how="stopped"), None),
    ],
)
def test_every_end_has_its_cause(ended: Ended | AgentLost, cause: str | None) -> None:
    placer = LocalPlacer(0)
    agent = LocalAgent(0, placer)
    agent.is_cut = True
    member = Member(agent, site=Site(node="n", host="h", pid=1))
    if isinstance(ended, Ended):
        member.status = Status(generation=1, ended=ended)
    else:
        member.take_loss(ended)
    fault = member.fault(rank=1, generation=1)
    assert (None if fault is None else fault.cause) == cause
    assert fault is None or fault.error in str(ended)


def test_progress_within_a_phase_is_no_hang() -> None:
    """An evaluation of hours is one phase: what counts is how long ago its last batch was."""
    page = Page()
    beacon = Beacon.on(page.descriptor)
    beacon.began = 0
    beacon.stepped(1)
    beacon.enter("evaluate")
    limits = Limits(evaluation=60.0)
    for advance, hangs in ((beacon.show, True), (beacon.passed, False)):
        beacon.since -= 100.0
        advance()
        assert overdue(Status(generation=1, beat=page.read()), limits) is hangs
    page.close()
