"""Saves on a real small file system that is full, read-only, gone or stuck for a while."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.checkpoint.async_saver import Saver, Unsaved
from cluster.checkpoint.retention import KeepPolicy
from cluster.resilience.lease import Lease
from tests.cluster.checkpoint.disk import Disk, mounted
from tests.cluster.checkpoint.fragments import holds, last_good, make_states, replicated

PATIENCE = 60.0  # Seconds until a test that would hang fails instead.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path, megabytes=16) as disk:
        yield disk


@dataclass
class Saves:
    """A saver on a disk, with short pauses."""

    root: Path
    tries: int
    lost: list[Unsaved] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.saver = Saver(
            self.root,
            KeepPolicy(last=2),
            lease=Lease.take(self.root),
            pauses=[0.05] * (self.tries - 1),
            max_failed=3,
            lost=self.lost.append,
        )

    def save(self, step: int) -> None:
        self.saver.save(step, replicated(make_states(step)), {})


FAULTS: list[tuple[Callable[[Disk], None], Callable[[Disk], None], int]] = [
    (Disk.fill, Disk.empty, errno.ENOSPC),
    (Disk.forbid, Disk.permit, errno.EROFS),
    (Disk.detach, Disk.mount, errno.ENOENT),
]
NAMES = ["full", "read-only", "gone"]


@pytest.mark.parametrize(("begin", "end", "number"), FAULTS, ids=NAMES)
def test_a_save_is_given_up_and_the_last_good_one_stays(
    begin: Callable[[Disk], None], end: Callable[[Disk], None], number: int, disk: Disk
) -> None:
    saves = Saves(disk.folder / "checkpoints", tries=2)
    saves.save(1)
    saves.saver.wait()
    begin(disk)
    saves.save(2)
    assert saves.saver.wait() is None
    [lost] = saves.lost
    assert (lost.step, lost.tries) == (2, 2)
    assert os.strerror(number) in lost.reason
    if begin is Disk.detach:
        assert list(disk.folder.iterdir()) == [], "nothing is made on the disk below"
    end(disk)
    found = last_good(saves.root)
    assert found.step == 1
    assert holds(found.path, make_states(1))
    saves.save(3)
    saves.saver.finish()
    assert [path.name for path in sorted(saves.root.glob("*step*"))] == [
        "step-00000001",
        "step-00000003",
    ], "nothing of the failed one is left"


@pytest.mark.parametrize(("begin", "end", "number"), FAULTS, ids=NAMES)
def test_a_save_is_tried_until_the_storage_is_back(
    begin: Callable[[Disk], None],
    end: Callable[[Disk], None],
    number: int,
    disk: Disk,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saves = Saves(disk.folder / "checkpoints", tries=1000)
    begin(disk)
    saves.save(1)
    deadline = time.monotonic() + PATIENCE
    while os.strerror(number) not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)
    end(disk)
    saves.saver.finish()
    assert saves.lost == []
    assert holds(last_good(saves.root).path, make_states(1))


def test_training_goes_on_while_the_storage_is_stuck(disk: Disk) -> None:
    saves = Saves(disk.folder / "checkpoints", tries=1)
    states = make_states(1)
    disk.freeze()
    try:
        saves.saver.save(1, replicated(states), {})
        for tensors in states.values():  # The next step.
            for tensor in tensors.values():
                tensor.zero_()
        assert list(saves.root.glob("*step*")) == [], "nothing is written yet"
    finally:
        disk.thaw()
    saves.saver.finish()
    assert holds(last_good(saves.root).path, make_states(1))
