"""Writing that is killed between any two steps, or runs out of disk, goes on where it was."""

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.selection import Selection
from convnextv2.data.shards.manifest import MANIFEST, Manifest
from convnextv2.data.writing import WriteSettings, disk, write_collection
from convnextv2.data.writing.beton import BetonWriter
from convnextv2.data.writing.plan import PLAN, WORK
from convnextv2.data.writing.shard import ShardJob, write_shard
from tests.convnextv2.data.fixtures.pictures import Pictures, write

SHARDS = 2
SOURCE = Pictures(((20, 30),) * 30, unreadable=(7,))
SETTINGS = WriteSettings(mode="raw", num_shards=SHARDS, max_unreadable=1, page_size=2 << 20)
# What Python tells its audit hooks of the file system; writes and fsync it does not.
AUDITED = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "fcntl.flock", "shutil.rmtree"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(SOURCE, tmp_path_factory.mktemp("straight"), SETTINGS)


class Steps:
    """Counts the steps that a process takes in a folder, and ends it before one of them."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.taken = str(folder), last, 0

    def watch(self) -> None:
        """From now on; it cannot be undone, and is for a process that ends."""
        sys.addaudithook(self._on_event)
        fsync, save = os.fsync, BetonWriter._write

        def counted_fsync(descriptor: int) -> None:
            self._step()
            fsync(descriptor)

        def counted_save(writer: BetonWriter, position: int, data: bytes) -> None:
            self._step()
            save(writer, position, data[: len(data) // 2])
            self._step()
            save(writer, position, data)

        mock.patch.object(os, "fsync", counted_fsync).start()
        mock.patch.object(BetonWriter, "_write", counted_save).start()

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and (event == "fcntl.flock" or self.folder in str(arguments[0])):
            self._step()

    def _step(self) -> None:
        if self.taken == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class State(NamedTuple):
    """What a killed process left that must not be done again: inodes by path."""

    shards: dict[Path, int]
    plan: dict[Path, int]


def left_in(folder: Path) -> State:
    work = folder / WORK
    if (folder / MANIFEST).exists():
        return State({path: path.stat().st_ino for path in folder.glob("*.beton")}, {})
    records = [int(path.stem) for path in work.glob("0*.json")]
    shards = [folder / f"train-{number:05}-of-{SHARDS:05}.beton" for number in records]
    plan = [*work.glob("*.npy"), work / PLAN] if (work / PLAN).exists() else []
    return State(
        {path: path.stat().st_ino for path in shards}, {path: path.stat().st_ino for path in plan}
    )


def go_on(folder: Path, plan: dict[Path, int]) -> Manifest:
    """Write again, and see that the plan is not made anew."""

    def run(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        assert {path: path.stat().st_ino for path in plan} == plan
        return map(function, items)

    return write_collection(
        SOURCE, "pictures", folder, Selection(), SETTINGS, run=run, note=lambda words: None
    )


def test_killed_before_any_step_it_goes_on_where_it_was(
    straight: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A killed process loses nothing that the kernel has, and the disk is slow.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    kept, last = set(), 0
    while (code := in_child(partial(write_until, folder := tmp_path / str(last), last))) != 0:
        assert code == -signal.SIGKILL
        left = left_in(folder)
        kept.add((len(left.plan) > 0, len(left.shards), (folder / MANIFEST).exists()))
        assert go_on(folder, left.plan) == straight
        assert {path: path.stat().st_ino for path in left.shards} == left.shards
        names = {MANIFEST, *(shard.name for shard in straight.shards)}
        assert {path.name for path in folder.iterdir()} == names
        last += 1
    assert last > 60
    # It was killed before the plan, with it, after each shard, and after the manifest.
    assert kept == {
        (False, 0, False),
        *((True, shards, False) for shards in range(SHARDS + 1)),
        (False, SHARDS, True),
    }


def write_until(folder: Path, last: int) -> None:
    Steps(folder, last).watch()
    write(SOURCE, folder, SETTINGS)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_what_is_free_and_needed(
    code: int, straight: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    save = BetonWriter._write

    def fill(writer: BetonWriter, position: int, data: bytes) -> None:
        writes.append(position)
        if len(writes) == 6:  # In the second shard.
            save(writer, position, data[:1000])
            raise OSError(code, os.strerror(code))
        save(writer, position, data)

    monkeypatch.setattr(BetonWriter, "_write", fill)
    words = (
        rf"disk full \(.*\) while writing {tmp_path}/train-00001-of-00002.beton: {tmp_path} has "
    )
    words += r"[\d.e+-]+ GB free, what is to be written needs about 2.61e-05 GB; free some room"
    with pytest.raises(DataError, match=words):
        write(SOURCE, tmp_path, SETTINGS)
    assert len(writes) == 6
    names = {WORK, straight.shards[0].name}
    assert {path.name for path in tmp_path.iterdir()} == names, "nothing unfinished is left"
    monkeypatch.undo()
    left = left_in(tmp_path)
    assert len(left.shards) == 1
    assert go_on(tmp_path, left.plan) == straight
    assert {path: path.stat().st_ino for path in left.shards} == left.shards


def test_a_file_that_may_not_grow_is_an_error_too(straight: Manifest, tmp_path: Path) -> None:
    """The kernel's own refusal, in the middle of a write."""

    def begin() -> None:
        limit = 3 << 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(DataError, match=r"disk full \(File too large\) while writing"):
            write(SOURCE, tmp_path, SETTINGS)

    assert in_child(begin) == 0
    assert {path.name for path in tmp_path.iterdir()} == {WORK}
    assert go_on(tmp_path, left_in(tmp_path).plan) == straight


def test_what_surely_does_not_fit_is_refused_before_a_shard_is_begun(
    straight: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: real._replace(free=20_000))
    words = rf"disk full: {tmp_path} has 2e-05 GB free, .* needs about 5.22e-05 GB.*max_resolution"
    with pytest.raises(DataError, match=words):
        write(SOURCE, tmp_path, SETTINGS)
    assert list(tmp_path.glob("*.beton")) == []
    monkeypatch.undo()
    assert write(SOURCE, tmp_path, SETTINGS) == straight


def test_a_process_that_was_thought_dead_publishes_nothing(
    straight: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is cut off goes on writing, while its shard is written again elsewhere."""
    jobs: list[ShardJob] = []

    def stop_at_shards(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, ShardJob):
                jobs.append(item)
                raise InterruptedError
            yield function(item)

    with pytest.raises(InterruptedError):
        write_collection(SOURCE, "pictures", tmp_path, Selection(), SETTINGS, run=stop_at_shards)
    (job,) = jobs
    finish, published = BetonWriter.finish, []

    def finish_late(writer: BetonWriter) -> None:
        monkeypatch.undo()
        write_shard(job)
        job.record_path.unlink()  # As if it came later: the late one finds nothing to trust.
        published.append(job.path.stat().st_ino)
        finish(writer)

    monkeypatch.setattr(BetonWriter, "finish", finish_late)
    with pytest.raises(DataError, match=r"writing .* failed: .*No such file"):
        write_shard(job)
    assert published == [job.path.stat().st_ino]
    assert list(tmp_path.glob(".*.partial")) == []
    assert write(SOURCE, tmp_path, SETTINGS) == straight
