"""Two attempts at once: the older one stops and publishes nothing, wherever it was paused.

The old attempt is a process that is halted before a call that changes the file system or opens the
lease; the test repeats this for every such call of a save. Then a new attempt begins, resumes and
saves, and the old one continues.
"""

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import latest_good, steps, sweep
from cluster.resilience import lease as module
from cluster.resilience.lease import Lease, Superseded
from tests.cluster.checkpoint.fragments import holds, is_good, last_good, make_states, replicated
from tests.cluster.process_group import run_group
from tests.cluster.resilience.kills import Pause, calls_in

CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([__name__])
PATIENCE = 60.0  # Seconds after which a test that hangs fails.
OLD, NEW = 1, 2  # Seeds of what the two attempts save.
PUBLISHED, SUPERSEDED, FAILED = 0, 3, 1


def save(root: Path, lease: Lease, step: int, seed: int) -> None:
    saver = Saver(root, KeepPolicy(last=2), lease=lease)
    saver.save(step, replicated(make_states(seed)), {"attempt": seed})
    saver.wait()


def old_attempt(lease: Lease, pause: Pause) -> None:
    """Save step 300, paused once, then try step 400. The exit code tells the outcome."""
    pause.arm()
    try:
        save(lease.folder, lease, 300, OLD)
        save(lease.folder, lease, 400, OLD)
    except Superseded:
        os._exit(SUPERSEDED)
    except BaseException:
        os._exit(FAILED)
    os._exit(PUBLISHED)


def pauses(folder: Path) -> Iterator[tuple[Path, list[tuple[str, str]], int | None]]:
    """For every call of the first save: the folder, the calls before it, and the exit code."""
    begun = folder / "begun"
    save(begun, Lease.take(begun), 200, OLD)
    call = 0
    while True:
        call += 1
        root = folder / f"{call}"
        shutil.copytree(begun, root)
        pause = Pause(root, folder / f"{call}.log", call)
        lease = Lease(root, 1)
        process = CLEAN.Process(target=old_attempt, args=(lease, pause))
        process.start()
        assert pause.reached(PATIENCE), "paused, or at its end"
        before = calls_in(pause.log)[:-1]
        if ("rename", str(root / "step-00000300")) in before[:-1]:
            pause.go_on()
            process.join()
            return
        new = Lease.take(root)
        found = last_good(root)
        save(root, new, found.step + 50, NEW)  # Not a step of the old attempt.
        pause.go_on()
        process.join(PATIENCE)
        yield root, before, process.exitcode


def test_an_old_attempt_that_was_paused_publishes_nothing_any_more(tmp_path: Path) -> None:
    kinds = []
    for root, before, code in pauses(tmp_path):
        kinds.append(calls_in(root.with_suffix(".log"))[len(before)][0])
        published = ("rename", str(root / "step-00000300")) in before
        # The new attempt resumes from the save if it was renamed before the attempt looked.
        assert [path.name for path in steps(root)] == (
            ["step-00000300", "step-00000350"] if published else ["step-00000200", "step-00000250"]
        )
        newest = last_good(root)
        assert newest.notes == {"attempt": NEW}
        assert holds(newest.path, make_states(NEW))
        assert all(is_good(path) for path in steps(root))
        assert code == SUPERSEDED
        assert [path.name for path in root.glob("generation-*")] == ["generation-2"]
    assert len(kinds) > 15
    assert set(kinds) >= {"mkdir", "open", "write", "fsync", "rename"}


def test_the_next_attempt_takes_the_next_number_and_takes_the_old_file_away(tmp_path: Path) -> None:
    root = tmp_path / "stage" / "checkpoints"
    first = Lease.take(root)
    first.check()
    second = Lease.take(root)
    assert (first.generation, second.generation) == (1, 2)
    second.check()
    here = rf"attempt 2 has begun, on {os.uname().nodename}, process {os.getpid()}, at 20"
    with pytest.raises(Superseded, match=here):
        first.check()
    assert os.listdir(root) == ["generation-2"]


def test_a_number_that_an_old_look_at_the_folder_missed_is_not_taken_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates an NFS client whose cached folder listing lacks the newest files of others."""
    stale = [[], ["generation-1"]]
    look = os.listdir
    for number in (1, 4):
        (tmp_path / f"generation-{number}").touch()
    monkeypatch.setattr(
        module.os, "listdir", lambda folder: stale.pop(0) if stale else look(folder)
    )
    assert Lease.take(tmp_path).generation == 5
    assert look(tmp_path) == ["generation-5"]


def test_a_folder_that_has_gone_is_no_newer_attempt(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    lease = Lease.take(root)
    root.rename(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError):
        lease.check()
    root.mkdir()
    with pytest.raises(FileNotFoundError):
        lease.check()


def test_an_old_attempt_sweeps_nothing_of_a_newer_one(tmp_path: Path) -> None:
    for name in ("2-0a", "1-0b", "1-0c"):
        (tmp_path / f".step-00000300.{name}.partial").mkdir()
    sweep(tmp_path, 1)
    assert os.listdir(tmp_path) == [".step-00000300.2-0a.partial"]


def superseded_together(root: Path) -> None:
    """Rank 0 checks the lease, and all workers learn the result."""
    lease = Lease.take(root)
    if dist.get_rank() == 0:
        module._next_generation(root)  # As another process would, outside of this group.
    dist.barrier()
    with pytest.raises(Superseded, match="attempt 2 has begun"):
        save(root, lease, 100, OLD)
    assert latest_good(root).found is None


@pytest.mark.slow
def test_all_workers_of_an_old_attempt_hear_of_it(tmp_path: Path) -> None:
    run_group(superseded_together, 2, tmp_path, tmp_path / "checkpoints")


def test_a_file_of_an_old_attempt_does_not_replace_that_of_a_newer_one(tmp_path: Path) -> None:
    old = Lease.take(tmp_path)
    old.publish("result.json", b"first")
    new = Lease.take(tmp_path)
    new.publish("result.json", b"second")
    with pytest.raises(Superseded, match="attempt 2 has begun"):
        old.publish("result.json", b"third")
    assert (tmp_path / "result.json").read_bytes() == b"second"
    assert sorted(os.listdir(tmp_path)) == ["generation-2", "result.json"]


@pytest.mark.parametrize("call", ["write", "replace"])
def test_an_attempt_that_is_replaced_while_it_publishes_leaves_no_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new attempt begins before the old one's last calls, after it has looked at its lease."""
    old = Lease.take(tmp_path)
    where = module.durable if call == "write" else module.os
    original = getattr(where, call)
    begun: list[str] = []

    def begin_another(*arguments: object) -> object:
        if not begun:
            begun.append(call)
            Lease.take(tmp_path)
        return original(*arguments)

    monkeypatch.setattr(where, call, begin_another)
    with pytest.raises(Superseded, match="attempt 2 has begun"):
        old.publish("result.json", b"old")
    assert os.listdir(tmp_path) == ["generation-2"]
