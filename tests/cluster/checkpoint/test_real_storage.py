"""Saves on a real small file system that is full, read-only, gone or stuck for a while."""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.checkpoint.async_saver import Saver, Unsaved
from cluster.checkpoint.retention import KeepPolicy
from cluster.resilience.lease import Lease
from tests.cluster.checkpoint.fragments import holds, last_good, make_states, replicated

PATIENCE = 60.0  # Seconds until a test that would hang fails instead.


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=PATIENCE)


@dataclass
class Disk:
    """An ext4 of 16 MB in a file."""

    image: Path
    folder: Path

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def mount(self) -> None:
        run("mount", "-o", "loop", self.image, self.folder)

    def fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        self.ballast.unlink()

    def forbid(self) -> None:
        run("mount", "-o", "remount,ro", self.folder)

    def permit(self) -> None:
        run("mount", "-o", "remount,rw", self.folder)

    def detach(self) -> None:
        run("umount", "--lazy", self.folder)

    def freeze(self) -> None:
        run("fsfreeze", "--freeze", self.folder)

    def thaw(self) -> None:
        run("fsfreeze", "--unfreeze", self.folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "image", tmp_path / "mounted")
    disk.folder.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", disk.image)
    disk.mount()
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=False)


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
