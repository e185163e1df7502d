"""The node-local cache: copied once, checked, gone on with, evicted, and never in the way."""

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from convnextv2.data import local_cache
from convnextv2.data.collection import DataError
from convnextv2.data.local_cache import LocalCache
from convnextv2.data.manifest import Manifest, Shard, write_manifest

SIZE = 300_000


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

    def copy(*_: object, **__: object) -> bool:
        raise AssertionError("copied again")

    monkeypatch.setattr(LocalCache, "_copy", copy)
    again = LocalCache(folder, tmp_path / "near").start()
    wait(again, 3)
    assert again.error is None
    again.close()


def copy_slowly(folder: Path, near: Path, copied: "multiprocessing.Queue[str]") -> None:
    """A process of its own: says what it copied, and takes its time."""
    whole = LocalCache._copy

    def copy(self: LocalCache, shard: Shard, *, last: bool) -> bool:
        time.sleep(0.2)
        done = whole(self, shard, last=last)
        copied.put(shard.name)
        return done

    LocalCache._copy = copy  # type: ignore[method-assign]
    local_cache.POLL_SECONDS = 0.05
    cache = LocalCache(folder, near).start()
    wait(cache, 3)
    cache.close()


def test_of_two_processes_one_copies(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "far")
    context = multiprocessing.get_context("fork")
    copied: multiprocessing.Queue[str] = context.Queue()
    pair = [
        context.Process(target=copy_slowly, args=(folder, tmp_path / "near", copied))
        for _ in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
        assert process.exitcode == 0
    names = []
    while not copied.empty():
        names.append(copied.get())
    assert sorted(names) == ["0.beton", "1.beton", "2.beton"]


def copy_and_die(folder: Path, near: Path) -> None:
    """Killed in the middle of the second shard."""
    local_cache.CHUNK = SIZE // 4
    chunks = 0

    class Stop:
        def is_set(self) -> bool:
            nonlocal chunks
            chunks += 1
            if chunks > 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

    cache = LocalCache(folder, near)
    cache._stop = Stop()  # type: ignore[assignment]
    cache._copy_missing()


def test_another_process_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    folder, near = make_folder(tmp_path / "far"), tmp_path / "near"
    process = multiprocessing.get_context("fork").Process(target=copy_and_die, args=(folder, near))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(near.glob("*.beton"))) == 1
    (torn,) = near.glob(".*.partial")
    assert 0 <= torn.stat().st_size < SIZE

    cache = LocalCache(folder, near).start()
    wait(cache, 3)
    assert cache.path(1).read_bytes() == (folder / "1.beton").read_bytes()
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


def test_an_original_that_is_not_what_the_manifest_says_is_never_copied(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "far")
    data = bytearray((folder / "1.beton").read_bytes())
    data[1000] ^= 1
    (folder / "1.beton").write_bytes(data)
    cache = LocalCache(folder, tmp_path / "near").start()
    cache._thread.join(30)
    assert isinstance(cache.error, DataError)
    assert "not what its manifest says" in str(cache.error)
    assert cache.arrived == 1
    assert cache.path(1) == folder / "1.beton"
    cache.close()


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


def test_without_room_the_rest_is_read_from_the_original(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "far")
    cache = LocalCache(folder, tmp_path / "near", 2 * SIZE + 10).start()
    cache._thread.join(30)
    assert "no room for 2.beton" in str(cache.error)
    assert cache.arrived == 2
    assert cache.path(2) == folder / "2.beton"
    cache.close()


def test_a_full_disk_stops_the_copy_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck = []

    def refuse(descriptor: int) -> None:
        struck.append(descriptor)
        raise OSError(28, "No space left on device")

    folder = make_folder(tmp_path / "far")
    cache = LocalCache(folder, tmp_path / "near")
    monkeypatch.setattr(os, "fsync", refuse)
    cache.start()
    cache._thread.join(30)
    assert struck
    assert "No space left" in str(cache.error)
    assert cache.path(0) == folder / "0.beton"
    cache.close()


def test_closing_stops_a_copy_between_two_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "far", shards=1)
    monkeypatch.setattr(local_cache, "CHUNK", 1000)
    cache = LocalCache(folder, tmp_path / "near")
    cache._stop.set()
    cache.start()
    cache.close()
    assert not cache._thread.is_alive()
    assert not list((tmp_path / "near").glob("*.beton"))
