"""The node-local cache: copied once, checked, gone on with, evicted, and never in the way."""

import errno
import hashlib
import io
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convnextv2.data.collection import DataError
from convnextv2.data.shards import local_cache
from convnextv2.data.shards.local_cache import LocalCache
from convnextv2.data.shards.manifest import Manifest, Shard, read_manifest, write_manifest
from convnextv2.durable import lock

SIZE = 300_000
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_cache, "POLL_SECONDS", 0.02)


def make_folder(folder: Path, shards: int = 3, first: int = 0) -> Path:
    """Shards that are bytes like others, with their manifest."""
    folder.mkdir()
    made = []
    for number in range(shards):
        data = bytes([first + number]) * SIZE
        (folder / f"{number}.beton").write_bytes(data)
        made.append(Shard(f"{number}.beton", 1, SIZE, hashlib.sha256(data).hexdigest()))
    manifest = Manifest(
        split="train", shards=tuple(made), classes=(), class_counts=(), skipped=(), settings={},
        selection={}, source="", source_fingerprint="",
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def wait(cache: LocalCache, arrived: int) -> None:
    deadline = time.monotonic() + 30
    while cache.arrived < arrived and cache.error is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def watch(seen: Callable[[bytes], object]) -> SimpleNamespace:
    """A hashlib that shows what is hashed: every byte that is copied or read again."""

    class Digest:
        def __init__(self) -> None:
            self.digest = hashlib.sha256()

        def update(self, chunk: bytes) -> None:
            seen(chunk)
            self.digest.update(chunk)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    return SimpleNamespace(sha256=Digest)


def finish(cache: LocalCache) -> None:
    cache._thread.join(30)
    assert not cache._thread.is_alive()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_shards_are_read_from_the_copy_once_it_has_arrived(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "far")
    cache = LocalCache(folder, tmp_path / "near")
    assert [cache.path(number) for number in range(3)] == [
        folder / f"{number}.beton" for number in range(3)
    ]
    cache.start()
    wait(cache, 3)
    for number in range(3):
        assert cache.path(number).parent == tmp_path / "near"
        assert cache.path(number).read_bytes() == (folder / f"{number}.beton").read_bytes()
    cache.close()


def test_what_is_there_is_not_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "far")
    first = LocalCache(folder, tmp_path / "near").start()
    wait(first, 3)
    first.close()

    copied: list[bytes] = []
    monkeypatch.setattr(local_cache, "hashlib", watch(copied.append))
    again = LocalCache(folder, tmp_path / "near")
    assert again.arrived == 3
    again.start()
    finish(again)
    assert again.error is None
    assert copied == []
    again.close()


def copy_and_count(folder: Path, near: Path, counts: "multiprocessing.Queue[int]") -> None:
    """A process of its own that takes its time, and says how many bytes went through it."""
    total = 0

    def count(chunk: bytes) -> None:
        nonlocal total
        total += len(chunk)
        time.sleep(0.05)

    local_cache.hashlib = watch(count)  # type: ignore[assignment]
    local_cache.CHUNK = SIZE // 3
    cache = LocalCache(folder, near).start()
    wait(cache, 3)
    assert cache.error is None
    finish(cache)
    cache.close()
    counts.put(total)


def test_of_two_processes_one_copies_and_both_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "far")
    counts: multiprocessing.Queue[int] = FORK.Queue()
    pair = [
        FORK.Process(target=copy_and_count, args=(folder, tmp_path / "near", counts))
        for _ in range(2)
    ]
    for process in pair:
        process.start()
    copied = sum(counts.get(timeout=60) for _ in pair)
    for process in pair:
        process.join(60)
        assert process.exitcode == 0
    assert copied == 3 * SIZE


def copy_and_die(folder: Path, near: Path, begun: Event, die: Event) -> None:
    """Killed in the middle of the second shard, when told."""
    chunks = 0

    def kill(chunk: bytes) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 4 + 3:
            begun.set()
            die.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)

    local_cache.hashlib = watch(kill)  # type: ignore[assignment]
    local_cache.CHUNK = SIZE // 4
    finish(LocalCache(folder, near).start())


def test_another_process_takes_over_and_goes_on_where_one_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, near = make_folder(tmp_path / "far"), tmp_path / "near"
    begun, die = FORK.Event(), FORK.Event()
    writer = FORK.Process(target=copy_and_die, args=(folder, near, begun, die))
    writer.start()
    assert begun.wait(60)
    (torn,) = near.glob(".*.partial")
    original = (folder / "1.beton").read_bytes()
    # What is there already is not fetched once more: it could not be.
    there = SIZE // 2
    assert there <= torn.stat().st_size < SIZE
    (folder / "1.beton").write_bytes(bytes(there) + original[there:])

    cache = LocalCache(folder, near).start()
    wait(cache, 1)
    # It asks for the other's lock again and again, and copies nothing meanwhile.
    asked = []

    def counted(file: io.TextIOWrapper) -> bool:
        asked.append(file)
        return lock(file)

    monkeypatch.setattr(local_cache, "lock", counted)
    deadline = time.monotonic() + 30
    while len(asked) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert cache.arrived == 1
    assert cache._thread.is_alive()
    die.set()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    wait(cache, 3)
    assert cache.error is None
    assert cache.path(1).read_bytes() == original
    assert not list(near.glob(".*.partial"))
    cache.close()


def test_a_torn_copy_with_wrong_bytes_is_made_again(tmp_path: Path) -> None:
    folder, near = make_folder(tmp_path / "far", shards=1), tmp_path / "near"
    near.mkdir()
    sha256 = hashlib.sha256((folder / "0.beton").read_bytes()).hexdigest()
    (near / f".{sha256}.partial").write_bytes(b"garbage")
    cache = LocalCache(folder, near).start()
    wait(cache, 1)
    assert cache.path(0).read_bytes() == (folder / "0.beton").read_bytes()
    cache.close()


def test_a_wrong_original_is_never_copied_and_read_twice_by_one_process_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, near = make_folder(tmp_path / "far"), tmp_path / "near"
    flip(folder / "1.beton", 1000)
    copied: list[bytes] = []
    monkeypatch.setattr(local_cache, "hashlib", watch(copied.append))
    first = LocalCache(folder, near).start()
    finish(first)
    later = LocalCache(folder, near).start()
    finish(later)
    for cache in (first, later):
        assert isinstance(cache.error, DataError)
        assert f"{folder / '1.beton'} is not what its manifest says" in str(cache.error)
        # The shards around it have arrived.
        assert cache.arrived == 2
        assert cache.path(0).parent == cache.path(2).parent == near
        assert cache.path(1) == folder / "1.beton"
        cache.close()
    assert sum(map(len, copied)) == 4 * SIZE
    assert len(caplog.records) == 2
    # Repaired, even with its old date, it is copied.
    wrong = (folder / "1.beton").stat()
    flip(folder / "1.beton", 1000)
    while (folder / "1.beton").stat().st_ctime_ns == wrong.st_ctime_ns:
        # The kernel's clock for files ticks every few milliseconds.
        os.utime(folder / "1.beton", ns=(wrong.st_mtime_ns, wrong.st_mtime_ns))
    os.utime(folder / "1.beton", ns=(wrong.st_mtime_ns, wrong.st_mtime_ns))
    repaired = LocalCache(folder, near).start()
    wait(repaired, 3)
    assert repaired.error is None
    repaired.close()


def test_an_entry_that_was_cut_is_not_used_and_made_again(tmp_path: Path) -> None:
    folder, near = make_folder(tmp_path / "far", shards=1), tmp_path / "near"
    first = LocalCache(folder, near).start()
    wait(first, 1)
    entry = first.path(0)
    first.close()
    os.truncate(entry, 100)
    again = LocalCache(folder, near)
    assert again.path(0) == folder / "0.beton"
    again.start()
    wait(again, 1)
    assert again.path(0).read_bytes() == (folder / "0.beton").read_bytes()
    again.close()


def test_data_sets_share_shards_and_a_changed_one_is_another(tmp_path: Path) -> None:
    near = tmp_path / "near"
    old = LocalCache(make_folder(tmp_path / "old", 3, first=1), near).start()
    wait(old, 3)
    # Two shards are the same; the third has the same name as one of the others, and other bytes.
    new = LocalCache(make_folder(tmp_path / "new", 3, first=2), near)
    assert new.arrived == 2
    assert new.path(0) == old.path(1)
    assert new.path(2) == tmp_path / "new" / "2.beton"
    old.close()


def test_what_was_used_longest_ago_makes_way_and_what_is_in_use_does_not(tmp_path: Path) -> None:
    near, room = tmp_path / "near", 4 * SIZE
    old = LocalCache(make_folder(tmp_path / "old", 2, first=10), near, room).start()
    wait(old, 2)
    used = LocalCache(make_folder(tmp_path / "used", 1, first=20), near, room).start()
    wait(used, 1)
    old.close()
    for entry in near.glob("*.beton"):
        age = 100 if entry == used.path(0) else 50
        os.utime(entry, (time.time() - age, time.time() - age))
    new = LocalCache(make_folder(tmp_path / "new", 3, first=30), near, room).start()
    wait(new, 3)
    # The one in use is the oldest, and is still there; the two others are gone.
    assert used.path(0).exists()
    assert len(list(near.glob("*.beton"))) == 4
    used.close()
    new.close()


def test_no_more_is_evicted_than_needed_and_the_oldest_first(tmp_path: Path) -> None:
    near = tmp_path / "near"
    old = LocalCache(make_folder(tmp_path / "old", 3, first=10), near).start()
    wait(old, 3)
    entries = [old.path(number) for number in range(3)]
    old.close()
    # Neither copied nor named in this order.
    for entry, age in zip(entries, (50, 90, 70), strict=True):
        os.utime(entry, (time.time() - age, time.time() - age))
    (near / ".of-a-killed-run.partial").write_bytes(bytes(10))
    left = []
    for count in (1, 2):
        folder = make_folder(tmp_path / f"new{count}", count, first=20)
        new = LocalCache(folder, near, 3 * SIZE).start()
        wait(new, count)
        assert new.error is None
        left.append([entry.exists() for entry in entries])
        new.close()
    assert left == [[True, False, True], [True, False, False]]
    assert not list(near.glob(".*.partial"))


def test_a_closing_run_counts_as_use(tmp_path: Path) -> None:
    cache = LocalCache(make_folder(tmp_path / "far", 1), tmp_path / "near").start()
    wait(cache, 1)
    entry = cache.path(0)
    os.utime(entry, (1000, 1000))
    cache.close()
    assert entry.stat().st_mtime > 1000


def test_copies_of_another_user_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "far", 1)
    first = LocalCache(folder, tmp_path / "near").start()
    wait(first, 1)
    first.close()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    other = LocalCache(folder, tmp_path / "near")
    assert other.arrived == 1
    other.close()


def test_without_room_the_rest_is_read_from_the_original_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(tmp_path / "far", 4)
    cache = LocalCache(folder, tmp_path / "near", 2 * SIZE + 10).start()
    finish(cache)
    assert "has no room for 2.beton" in str(cache.error)
    assert cache.arrived == 2
    assert [cache.path(number).parent == folder for number in range(4)] == [
        False,
        False,
        True,
        True,
    ]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    cache.close()


def test_nothing_is_evicted_for_a_shard_that_will_not_fit(tmp_path: Path) -> None:
    near = tmp_path / "near"
    old = LocalCache(make_folder(tmp_path / "old", 2, first=10), near).start()
    wait(old, 2)
    old.close()
    new = LocalCache(make_folder(tmp_path / "new", 1, first=20), near, SIZE - 1).start()
    finish(new)
    assert "no room" in str(new.error)
    assert len(list(near.glob("*.beton"))) == 2
    new.close()


class FullDisk(io.FileIO):
    """A file on a disk that has room for `left` bytes."""

    left = 0

    def write(self, data: Any, /) -> int:
        if FullDisk.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(memoryview(data)[: FullDisk.left])
        FullDisk.left -= written
        return written


def test_a_disk_that_fills_up_is_left_alone_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Path.open

    def open_there(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode == "a+b":
            return io.BufferedRandom(FullDisk(path, mode))
        return whole(path, mode, *rest, **named)

    folder, near = make_folder(tmp_path / "far"), tmp_path / "near"
    monkeypatch.setattr(FullDisk, "left", SIZE + SIZE // 2)
    monkeypatch.setattr(local_cache, "CHUNK", SIZE // 10)
    monkeypatch.setattr(Path, "open", open_there)
    cache = LocalCache(folder, near).start()
    finish(cache)
    assert "has no room for 1.beton" in str(cache.error)
    assert "No space left" in str(cache.error)
    assert len(caplog.records) == 1
    assert cache.path(0).read_bytes() == (folder / "0.beton").read_bytes()
    assert cache.path(1) == folder / "1.beton"
    # Half a shard does not keep the disk full.
    assert sorted(path.name for path in near.iterdir()) == sorted([".lock", cache.path(0).name])
    cache.close()


def test_a_cache_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cache .*file/near cannot be used"):
        LocalCache(make_folder(tmp_path / "far", 1), tmp_path / "file" / "near")


@pytest.fixture(params=["copying", "reading again what is there"])
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, int]:
    """A shard, a cache, and what is there of it."""
    folder, near = make_folder(tmp_path / "far", shards=1), tmp_path / "near"
    near.mkdir()
    (shard,) = read_manifest(folder).shards
    there = SIZE * 9 // 10 if request.param != "copying" else 0
    (near / f".{shard.sha256}.partial").write_bytes((folder / shard.name).read_bytes()[:there])
    return folder, near, there


def test_closing_stops_between_two_chunks_and_leaves_what_was_copied(
    begun: tuple[Path, Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, near, there = begun
    chunks: list[bytes] = []

    def stop_after_two(chunk: bytes) -> None:
        chunks.append(chunk)
        if len(chunks) == 2:
            cache._stop.set()

    monkeypatch.setattr(local_cache, "CHUNK", SIZE // 10)
    monkeypatch.setattr(local_cache, "hashlib", watch(stop_after_two))
    cache = LocalCache(folder, near)
    cache.start()
    finish(cache)
    cache.close()
    assert len(chunks) == 2
    assert cache.error is None
    (partial,) = near.glob(".*.partial")
    assert partial.stat().st_size == max(there, SIZE // 10 * 2)
    monkeypatch.setattr(local_cache, "hashlib", hashlib)
    again = LocalCache(folder, near).start()
    wait(again, 1)
    assert again.path(0).read_bytes() == (folder / "0.beton").read_bytes()
    again.close()
