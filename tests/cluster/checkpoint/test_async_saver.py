"""Saving behind the training's back: what it waits for, what it holds, and who hears of errors.

Nothing here measures time: writers are held by events, and let go by what must wait for them.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.checkpoint import async_saver as module
from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.fragment_files import write_fragments
from cluster.checkpoint.fragments import StateFragment
from cluster.checkpoint.host_copy import HostCopy
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import CheckpointError, latest_good, verify
from cluster.durable import FileDigest
from tests.cluster.checkpoint.fragments import (
    States,
    holds,
    last_good,
    make_states,
    replicated,
    scattered,
)
from tests.cluster.process_group import run_group

KEEP = KeepPolicy(last=9)
PATIENCE = 60.0  # Seconds until a test that would hang fails instead.
WriteFragments = Callable[[Path, Sequence[StateFragment]], FileDigest]


class Held:
    """A writer that waits to be let go, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, path: Path, fragments: Sequence[StateFragment]) -> FileDigest:
        self.begun.set()
        assert self.free.wait(PATIENCE)
        return write_fragments(path, fragments)


def on_a_full_disk(path: Path, fragments: Sequence[StateFragment]) -> FileDigest:
    path.symlink_to("/dev/full")
    return write_fragments(path, fragments)


def train(states: States) -> None:
    """Change every tensor in place, as an optimizer does."""
    for tensors in states.values():
        for tensor in tensors.values():
            tensor.mul_(0.5).add_(1)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Callable[[WriteFragments], None]:
    """Has the saver write with another function."""
    return lambda write: monkeypatch.setattr(module, "write_fragments", write)


def test_training_goes_on_while_the_weights_of_before_are_written(
    tmp_path: Path, writer: Callable[[WriteFragments], None]
) -> None:
    states, held = make_states(), Held()
    writer(held)
    saver, notes = Saver(tmp_path, KEEP), {"metrics": {"loss": 1.0}}
    assert saver.save(1, replicated(states), notes) is None
    assert held.begun.wait(PATIENCE)
    train(states)
    notes["metrics"]["loss"] = 2.0
    assert latest_good(tmp_path).found is None, "save came back, and nothing is there yet"
    held.free.set()
    saved = saver.wait()
    assert saved is not None
    assert saved.seconds > 0
    assert saved.checkpoint == last_good(tmp_path)
    assert saved.checkpoint.notes == {"metrics": {"loss": 1.0}}
    assert holds(saved.checkpoint.path, make_states())
    assert not holds(saved.checkpoint.path, states)


def test_every_save_is_told_once(tmp_path: Path) -> None:
    saver, states = Saver(tmp_path, KEEP), make_states()
    assert saver.wait() is None
    told = [saver.save(step, replicated(states), {}) for step in (1, 2, 3)]
    told += [saver.wait(), saver.wait()]
    steps = [None if saved is None else saved.checkpoint.step for saved in told]
    assert steps == [None, 1, 2, 3, None]


def test_the_next_save_waits_for_the_last_before_it_copies(
    tmp_path: Path, writer: Callable[[WriteFragments], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, held = make_states(), Held()
    writer(held)
    saver = Saver(tmp_path, KEEP)
    saver.save(1, replicated(states), {})
    assert held.begun.wait(PATIENCE)
    join, seen = threading.Thread.join, []

    def let_go_and_join(thread: threading.Thread, timeout: float | None = None) -> None:
        held.free.set()  # The writer goes on only if and when somebody waits for it.
        join(thread, timeout)

    def take(host: HostCopy, fragments: Sequence[StateFragment]) -> list[StateFragment]:
        found = latest_good(tmp_path).found
        seen.append(found and found.step)
        held.free.set()
        return list(fragments)

    monkeypatch.setattr(threading.Thread, "join", let_go_and_join)
    monkeypatch.setattr(HostCopy, "take", take)
    saver.save(2, replicated(states), {})
    saver.wait()
    assert seen == [1], "the buffers were not touched before step 1 was on disk"
    assert last_good(tmp_path).step == 2


@pytest.mark.parametrize("how", ["save", "wait"])
def test_an_error_of_the_writer_is_told_once_and_then_saving_works_again(
    how: str, tmp_path: Path, writer: Callable[[WriteFragments], None]
) -> None:
    saver, fragments = Saver(tmp_path, KEEP), replicated(make_states())
    saver.save(1, fragments, {})
    saver.wait()
    writer(on_a_full_disk)
    saver.save(2, fragments, {})
    with pytest.raises(CheckpointError, match=r"rank 0: OSError.*No space left on device"):
        saver.save(3, fragments, {}) if how == "save" else saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert saver.wait() is None
    writer(write_fragments)
    assert saver.save(3, fragments, {}) is None
    saver.wait()
    assert last_good(tmp_path).step == 3


def test_any_error_is_told(tmp_path: Path) -> None:
    saver = Saver(tmp_path, KEEP)
    saver.save(1, [StateFragment("x", (2,), 0, {"weight": torch.zeros(2).half()})], {})
    with pytest.raises(
        CheckpointError, match=r"states are saved in fp32; weight:x is torch\.float"
    ):
        saver.wait()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_old_ones_that_cannot_be_removed_are_a_warning(
    asynchronous: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(root: Path, policy: KeepPolicy) -> None:
        raise PermissionError("step-00000000 is not yours")

    monkeypatch.setattr(module, "prune", fail)
    saver = Saver(tmp_path, KEEP, asynchronous=asynchronous)
    with caplog.at_level(logging.WARNING):
        told = [saver.save(1, replicated(make_states()), {}), saver.wait()]
    assert [saved.checkpoint.step for saved in told if saved is not None] == [1]
    assert f"old checkpoints in {tmp_path} stay: step-00000000 is not yours" in caplog.text


def test_old_ones_are_removed(tmp_path: Path) -> None:
    saver = Saver(tmp_path, KeepPolicy(last=2))
    for step in (1, 2, 3, 4):
        saver.save(step, replicated(make_states(step)), {})
    saver.wait()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]
    assert holds(tmp_path / "step-00000003", make_states(3))


def test_synchronous_saving_is_done_when_it_returns_and_copies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(host: HostCopy, fragments: Sequence[StateFragment]) -> list[StateFragment]:
        raise AssertionError("memory for a copy")

    monkeypatch.setattr(HostCopy, "take", take)
    saver = Saver(tmp_path, KEEP, asynchronous=False)
    saved = saver.save(1, replicated(make_states()), {"seed": 1})
    assert saved is not None
    assert saved.checkpoint == last_good(tmp_path)
    assert holds(saved.checkpoint.path, make_states())
    assert saver.wait() is None


def test_synchronous_saving_raises_at_once(
    tmp_path: Path, writer: Callable[[WriteFragments], None]
) -> None:
    writer(on_a_full_disk)
    saver = Saver(tmp_path, KEEP, asynchronous=False)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.save(1, replicated(make_states()), {})
    assert saver.wait() is None


def pieces_of_this_worker(states: States, kind: str) -> list[StateFragment]:
    if kind == "replicated":
        return replicated(states)
    return scattered(states, dist.get_world_size())[dist.get_rank()]


def while_one_writes(root: Path, kind: str, slow: int) -> None:
    """The worker `slow` is held while it writes: nobody waits, nothing is published."""
    states, held, rank = make_states(), Held(), dist.get_rank()
    module.write_fragments = held if rank == slow else write_fragments
    saver = Saver(root, KEEP)
    assert saver.save(1, pieces_of_this_worker(states, kind), {"workers": 2}) is None
    train(states)
    # The training's own messages pass those of the threads.
    total = torch.tensor([float(rank)])
    for _ in range(20):
        dist.all_reduce(total)
    assert total.item() == 2.0**19
    assert latest_good(root).found is None
    dist.barrier()
    held.free.set()
    saved = saver.wait()
    assert saved is not None
    assert saved.checkpoint == verify(root / "step-00000001")
    assert holds(saved.checkpoint.path, make_states())


def when_one_fails(root: Path, failing: int, how: str) -> None:
    """A full disk of one worker is an error of all, at the next save or wait; then it works."""
    states, rank = make_states(), dist.get_rank()
    saver, fragments = Saver(root, KEEP), replicated(states)
    module.write_fragments = on_a_full_disk if rank == failing else write_fragments
    assert saver.save(1, fragments, {}) is None
    with pytest.raises(CheckpointError, match=rf"rank {failing}: OSError.*No space left"):
        saver.save(2, fragments, {}) if how == "save" else saver.wait()
    module.write_fragments = write_fragments
    saver.save(2, fragments, {})
    saver.save(3, fragments, {})
    saved = saver.wait()
    assert saved is not None
    assert saved.checkpoint == last_good(root)
    assert saved.checkpoint.step == 3
    assert holds(root / "step-00000002", states)
    assert not (root / "step-00000001").exists()


def two_workers(folder: Path) -> None:
    for slow in (0, 1):
        for kind in ("replicated", "scattered"):
            while_one_writes(folder / f"slow-{slow}-{kind}", kind, slow)
    for failing in (0, 1):
        for how in ("save", "wait"):
            when_one_fails(folder / f"fails-{failing}-{how}", failing, how)


@pytest.mark.slow
def test_two_workers_save_behind_their_training(tmp_path: Path) -> None:
    run_group(two_workers, 2, tmp_path, tmp_path)
    saved: dict[str, Any] = {path.name: last_good(path).step for path in tmp_path.glob("*-*")}
    assert saved == {
        **{f"slow-{slow}-{kind}": 1 for slow in (0, 1) for kind in ("replicated", "scattered")},
        **{f"fails-{rank}-{how}": 3 for rank in (0, 1) for how in ("save", "wait")},
    }
