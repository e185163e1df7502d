"""A group whose lease is taken by another attempt ends, even if it never comes to a save."""

import threading
import time
from pathlib import Path

import pytest

from cluster.resilience.conductor import Conductor, GroupFailed
from cluster.resilience.incidents import Incident
from cluster.resilience.lease import Lease
from cluster.workers import current
from cluster.workers.beacon import Beacon
from cluster.workers.current import CurrentWorker
from tests.cluster.resilience.groups.local_agents import LocalPlacer, job


def hang(folder: Path) -> None:
    lease = Lease.take(folder)
    lease.watch(every=0.1)
    (folder.parent / "waits").touch()
    threading.Event().wait()


@pytest.mark.slow
def test_a_stuck_group_ends_when_another_attempt_begins(tmp_path: Path) -> None:
    incidents: list[Incident] = []
    conductor = Conductor(LocalPlacer(1), [1], stage="pretrain", note=incidents.append)

    def begin_another_attempt() -> None:
        if (tmp_path / "waits").exists() and not incidents:
            Lease.take(tmp_path / "checkpoints")
            conductor.tick = lambda: None

    conductor.tick = begin_another_attempt
    with pytest.raises(GroupFailed, match=r"^worker 0 on [^:]+: attempt 1 .* attempt 2 has begun"):
        conductor.run(job(hang, tmp_path / "checkpoints"))
    assert [(each.cause, each.recovered) for each in incidents] == [("error", False)]


def test_storage_that_is_away_ends_no_attempt(tmp_path: Path) -> None:
    root, told = tmp_path / "checkpoints", threading.Event()
    lease = Lease.take(root)
    checks: list[float] = []
    check = Lease.check

    def counted(lease: Lease) -> None:
        checks.append(time.monotonic())
        check(lease)

    root.rename(tmp_path / "unmounted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lease, "check", counted)
        here = CurrentWorker(Beacon.on(None), give_up=lambda superseded: told.set())
        patch.setattr(current, "_worker", here)
        lease.watch(every=0.01)
        while len(checks) < 3:
            time.sleep(0.01)
        assert not told.is_set()
        (tmp_path / "unmounted").rename(root)
        Lease.take(root)
        assert told.wait(60)
