"""Storage that is full, read-only or gone: saves are tried again, given up, and told of."""

import errno
import os
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.checkpoint import publishing
from cluster.checkpoint.async_saver import Saver, SavesFailed, Unsaved
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import CheckpointError, latest_good
from cluster.resilience.lease import Lease
from cluster.workers.current import Final
from tests.cluster.checkpoint.fragments import holds, last_good, make_states, replicated
from tests.cluster.process_group import run_group

PATIENCE = 60.0  # Seconds until a test that would hang fails instead.
ERRORS = [errno.ENOSPC, errno.EROFS, errno.EIO]
# Which call fails: making the folder, the data's fsync, the renaming, the fsync after it.
CALLS = ["mkdir", "fsync", "replace", "sync_folder"]


class Failing:
    """The first `count` calls of a function raise; `fired` counts them."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, number: int, count: int) -> None:
        self.left, self.fired, self.number = count, 0, number
        home = {"mkdir": Path, "sync_folder": publishing.durable}.get(call, os)
        real = getattr(home, call)

        def stand_in(*arguments: object, **named: object) -> object:
            sweeping = call == "replace" and "removed" in str(arguments[1])
            early = call == "sync_folder" and not list(Path(str(arguments[0])).glob("step-*"))
            if self.left and not sweeping and not early:
                self.left -= 1
                self.fired += 1
                raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        patch.setattr(home, call, stand_in)


def saver(
    root: Path, *, tries: int, max_failed: int = 3, lost: list[Unsaved] | None = None
) -> Saver:
    return Saver(
        root,
        KeepPolicy(last=2),
        lease=Lease.take(root),
        pauses=[0.0] * (tries - 1),
        max_failed=max_failed,
        lost=([] if lost is None else lost).append,
    )


@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("call", CALLS)
def test_a_save_is_tried_until_the_storage_takes_it(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = saver(tmp_path, tries=4)
    failing = Failing(monkeypatch, call, number, 3)
    saving.save(1, replicated(make_states()), {})
    saved = saving.finish()
    assert failing.fired == 3
    assert saved is not None
    assert saved.checkpoint == last_good(tmp_path)
    assert holds(saved.checkpoint.path, make_states())
    assert not list(tmp_path.glob(".step-*")), "nothing of the failed ones is left"


@pytest.mark.parametrize("number", ERRORS)
def test_a_save_is_given_up_and_the_next_one_is_a_new_chance(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Unsaved] = []
    saving, fragments = saver(tmp_path, tries=2, lost=lost), replicated(make_states())
    saving.save(1, fragments, {})
    saving.wait()
    failing = Failing(monkeypatch, "fsync", number, 4)
    for step in (2, 3, 4):
        saving.save(step, fragments, {})
        saving.wait()
    assert failing.fired == 4
    assert [(each.step, each.tries, each.in_a_row) for each in lost] == [(2, 2, 1), (3, 2, 2)]
    assert os.strerror(number) in lost[0].reason
    assert f"MB were free in {tmp_path}" in lost[0].reason
    assert last_good(tmp_path).step == 4
    failing.left = 4
    for step in (5, 6):
        saving.save(step, fragments, {})
        saving.wait()
    assert [each.in_a_row for each in lost[2:]] == [1, 2], "it counts in a row"


def test_too_many_in_a_row_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving, fragments = saver(tmp_path, tries=1, max_failed=2), replicated(make_states())
    failing = Failing(monkeypatch, "fsync", errno.ENOSPC, 2)
    saving.save(1, fragments, {})
    saving.save(2, fragments, {})
    with pytest.raises(SavesFailed, match=r"^2 checkpoints in a row .*of step 2.*No space") as told:
        saving.wait()
    assert failing.fired == 2
    assert isinstance(told.value, Final), "another group of workers would find the same disk"
    assert "Free space there" in str(told.value)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_last_save_counts(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = Saver(tmp_path, KeepPolicy(), asynchronous=asynchronous, max_failed=3)
    Failing(monkeypatch, "fsync", errno.EIO, 1)
    saving.save(1, replicated(make_states()), {})
    with pytest.raises(CheckpointError, match=r"Input/output error.*tried 1 times"):
        saving.finish()


def test_a_newer_save_ends_the_waiting_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Unsaved] = []
    saving = Saver(tmp_path, KeepPolicy(), pauses=[10 * PATIENCE], max_failed=3, lost=lost.append)
    failing = Failing(monkeypatch, "fsync", errno.EIO, 1)
    fragments = replicated(make_states())
    saving.save(1, fragments, {})
    saving.save(2, fragments, {})
    assert ([each.step for each in lost], failing.fired) == ([1], 1)
    saving.finish()
    assert last_good(tmp_path).step == 2


def test_what_is_not_the_storage_is_not_tried_again(tmp_path: Path) -> None:
    saving, states = saver(tmp_path, tries=9), make_states()
    states["scale"]["weight"] = states["scale"]["weight"].half()
    saving.save(1, replicated(states), {})
    with pytest.raises(CheckpointError, match="states are saved in fp32"):
        saving.wait()


def one_of_two_fails(root: Path, failing: int) -> None:
    """All try again and give up alike, while training's own messages go round."""
    fsync, calls = os.fsync, []

    def fail(descriptor: int) -> None:
        if dist.get_rank() == failing and threading.current_thread().name == "checkpoint":
            calls.append(descriptor)
            if len(calls) <= 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    lost: list[Unsaved] = []
    saving, fragments = saver(root, tries=2, lost=lost), replicated(make_states())
    os.fsync = fail  # type: ignore[assignment]
    saving.save(1, fragments, {})
    saving.wait()
    saving.save(2, fragments, {})
    dist.barrier()
    saving.finish()
    os.fsync = fsync
    assert len(calls) >= (3 if dist.get_rank() == failing else 0)
    assert [(each.step, each.tries) for each in lost] == [(1, 2)]
    assert f"rank {failing}: OSError" in lost[0].reason
    found = latest_good(root).found
    assert found is not None
    assert found.step == 2


def both(folder: Path) -> None:
    for failing in (0, 1):
        one_of_two_fails(folder / f"{failing}", failing)


@pytest.mark.slow
def test_two_workers_try_again_together(tmp_path: Path) -> None:
    run_group(both, 2, tmp_path, tmp_path)
