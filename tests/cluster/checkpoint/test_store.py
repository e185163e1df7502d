"""A checkpoint is whole or not there: damage, full disks, other writers (kills: test_kills.py)."""

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from cluster import durable
from cluster.checkpoint import store
from cluster.checkpoint.publishing import Write, publish
from cluster.checkpoint.store import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    latest_good,
    steps,
    sweep,
    verify,
)
from cluster.durable import FileDigest
from tests.cluster.process_group import run_group

NOTES = {"world_size": 1, "betas": (0.9, 0.95), "nested": {"lr": 1e-3, "b": None, "a": "ü"}}
Files = dict[str, FileDigest]


def put(path: Path, content: bytes) -> FileDigest:
    path.write_bytes(content)
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())


def write(directory: Path) -> Files:
    (directory / "deep").mkdir()
    return {
        "weights.bin": put(directory / "weights.bin", bytes(range(256)) * 20),
        "deep/moments.bin": put(directory / "deep" / "moments.bin", b"moments"),
    }


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 100 and 200."""
    root = tmp_path / "checkpoints"
    publish(root, 100, write, NOTES)
    publish(root, 200, write, NOTES)
    return root


def test_what_was_published_is_found_with_its_notes(root: Path) -> None:
    assert names(root) == ["step-00000100", "step-00000200"]
    search = latest_good(root)
    assert search.rejected == []
    assert search.found is not None
    assert (search.found.path, search.found.step) == (root / "step-00000200", 200)
    assert search.found.notes == json.loads(json.dumps(NOTES))
    assert (search.found.path / "deep" / "moments.bin").read_bytes() == b"moments"


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert latest_good(tmp_path / "nowhere").found is None
    (tmp_path / "step-12").mkdir()
    (tmp_path / ".step-00000100.partial").mkdir()
    assert latest_good(tmp_path) == store.RestoreSearch(None, [])


def flip_a_byte(step: Path) -> None:
    content = bytearray((step / "weights.bin").read_bytes())
    content[2000] ^= 1
    (step / "weights.bin").write_bytes(content)


def cut_short(step: Path) -> None:
    os.truncate(step / "weights.bin", 4096)


def lose_a_file(step: Path) -> None:
    (step / "deep" / "moments.bin").unlink()


def lose_the_manifest(step: Path) -> None:
    (step / MANIFEST).unlink()


def cut_the_manifest_short(step: Path) -> None:
    os.truncate(step / MANIFEST, 40)


def replace_the_manifest(step: Path) -> None:
    (step / MANIFEST).write_text("[]")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_byte, "weights.bin has changed"),
    (cut_short, "weights.bin has 4096 bytes instead of 5120"),
    (lose_a_file, "deep/moments.bin cannot be read"),
    (lose_the_manifest, f"no readable {MANIFEST}"),
    (cut_the_manifest_short, f"no readable {MANIFEST}"),
    (replace_the_manifest, f"no readable {MANIFEST}"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_one_is_reported_and_passed_over(
    root: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(root / "step-00000200")
    left = sorted((root / "step-00000200").rglob("*"))
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 100
    ((path, why),) = search.rejected
    assert path == root / "step-00000200"
    assert reason in why
    assert sorted(path.rglob("*")) == left, "looking must not change the evidence"


def test_when_all_are_damaged_each_is_reported(root: Path) -> None:
    cut_short(root / "step-00000100")
    flip_a_byte(root / "step-00000200")
    search = latest_good(root)
    assert search.found is None
    assert [path.name for path, _ in search.rejected] == ["step-00000200", "step-00000100"]


def test_no_flipped_byte_of_the_manifest_passes_unseen(root: Path) -> None:
    whole = verify(root / "step-00000200")
    manifest = root / "step-00000200" / MANIFEST
    content = manifest.read_bytes()
    unseen: list[tuple[int, Checkpoint]] = []
    for place in range(len(content)):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        try:
            unseen.append((place, verify(root / "step-00000200")))
        except CheckpointError:
            continue
    assert [found for found in unseen if found[1] != whole] == []


def test_steps_are_ordered_as_numbers(root: Path) -> None:
    publish(root, 123_456_789, write, NOTES)
    publish(root, 1_123_456_789, write, NOTES)
    assert [path.name for path in steps(root)][-2:] == ["step-123456789", "step-1123456789"]
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 1_123_456_789


@pytest.mark.parametrize(
    ("notes", "read"),
    [
        ({"loss": float("inf"), "pair": (1, 2)}, {"loss": float("inf"), "pair": [1, 2]}),
        ({1: "number", "1": "text"}, {"1": "text"}),
        ({}, {}),
    ],
)
def test_notes_verify_whatever_is_in_them(
    notes: dict[str, Any], read: dict[str, Any], tmp_path: Path
) -> None:
    assert verify(publish(tmp_path, 1, write, notes).path).notes == read


def test_notes_that_are_no_json_are_an_error(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"commit failed.*PosixPath is not JSON serializable"):
        publish(root, 300, write, {"shards": root})
    assert names(root) == ["step-00000100", "step-00000200"]


def test_everything_is_synced_before_the_name_that_promises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the order matters to a power cut: content, names, then the one name that counts."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def see_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append("here" if path == tmp_path else "step" if "partial" in path.name else path.name)
        fsync(descriptor)

    def see_replace(source: Path, target: Path) -> None:
        seen.append(f"-> {target.name}")
        replace(source, target)

    def write_and_sync(directory: Path) -> Files:
        return {
            name: durable.write(directory / name, [b"one", memoryview(b"two")]) for name in "ab"
        }

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "replace", see_replace)
    saved = publish(tmp_path / "new" / "checkpoints", 1, write_and_sync, {})
    folders = ["here", "new"]
    assert seen == [*folders, "a", "b", MANIFEST, "step", "-> step-00000001", "checkpoints"]
    monkeypatch.undo()
    assert verify(saved.path).bytes == 12
    assert (saved.path / "a").read_bytes() == b"onetwo"


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_will_do_but_no_broken_one(
    answer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "fsync", fail)
    if answer == errno.EIO:
        with pytest.raises(CheckpointError, match="Input/output error"):
            publish(tmp_path / "checkpoints", 1, write, {})
    else:
        durable.sync_folder(tmp_path)
        with pytest.raises(OSError, match=os.strerror(answer)):
            durable.write(tmp_path / "file", [b"a file must be synced everywhere"])


def test_sweeping_takes_what_was_half_written_and_nothing_else(root: Path) -> None:
    (root / ".step-00000300.partial").mkdir()
    write(root / ".step-00000300.partial")
    sweep(root)
    assert names(root) == ["step-00000100", "step-00000200"]
    sweep(root / "nowhere")


def test_left_overs_that_cannot_be_removed_do_not_stop_a_save(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(f"{path.name} is not yours")

    (root / ".step-00000300.partial").mkdir()
    monkeypatch.setattr(shutil, "rmtree", fail)
    with caplog.at_level(logging.WARNING):
        publish(root, 300, write, NOTES)
    assert "is not yours" in caplog.text
    assert verify(root / "step-00000300").step == 300


def test_rewriting_a_rejected_step_keeps_the_evidence(root: Path) -> None:
    publish(root, 300, write, NOTES)
    flip_a_byte(root / "step-00000200")
    cut_short(root / "step-00000300")
    evidence = (root / "step-00000200" / "weights.bin").read_bytes()
    publish(root, 150, write, NOTES)  # Training went on from step 100.
    assert latest_good(root) == store.RestoreSearch(verify(root / "step-00000150"), [])
    assert [path.name for path in steps(root)] == ["step-00000100", "step-00000150"]
    aside, other = sorted(root.glob("*.rejected-*"))
    assert (aside / "weights.bin").read_bytes() == evidence
    assert other.name.startswith("step-00000300.rejected-")


@pytest.mark.parametrize("step", [150, 200])
def test_what_is_good_is_not_replaced(root: Path, step: int) -> None:
    before = latest_good(root)
    with pytest.raises(CheckpointError, match=r"step-00000200 is there already, and good"):
        publish(root, step, write, NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]
    assert latest_good(root) == before


def around(other: Callable[[], Checkpoint], moment: str) -> Write:
    """A writer in whose middle another run saves into the same folder."""

    def write_meanwhile(directory: Path) -> Files:
        if moment == "before":
            other()
        with (directory / "more.bin").open("wb", buffering=0) as file:
            if moment == "inside":
                other()
            file.write(b"more")
        files = write(directory)
        if moment == "after":
            other()
        return {**files, "more.bin": FileDigest(4, hashlib.sha256(b"more").hexdigest())}

    return write_meanwhile


@pytest.mark.parametrize("moment", ["before", "inside", "after"])
@pytest.mark.parametrize("step", [200, 300, 400])
def test_of_two_runs_in_one_folder_one_fails_and_nothing_is_mixed(
    root: Path, moment: str, step: int
) -> None:
    shutil.rmtree(root / "step-00000200")

    def other() -> Checkpoint:
        return publish(root, step, write, {"of": "the other"})

    with pytest.raises(CheckpointError, match="No such file or directory"):
        publish(root, 300, around(other, moment), {"of": "this"})
    search = latest_good(root)
    assert search.rejected == []
    assert search.found is not None
    assert (search.found.step, search.found.notes) == (step, {"of": "the other"})
    assert names(root) == ["step-00000100", f"step-{step:08d}"]


def test_two_runs_that_write_at_the_same_time_never_mix(root: Path) -> None:
    """One has written; the other sweeps it away and writes; the first goes on, then the other."""
    first_has_written, other_has_written = threading.Event(), threading.Event()
    heard: list[str] = []

    def write_first(directory: Path) -> Files:
        files = {"weights.bin": put(directory / "weights.bin", b"of the first")}
        first_has_written.set()
        assert other_has_written.wait(60)
        return files

    def publish_first() -> None:
        try:
            publish(root, 300, write_first, {})
        except CheckpointError as error:
            heard.append(str(error))

    first = threading.Thread(target=publish_first)

    def write_other(directory: Path) -> Files:
        files = {"weights.bin": put(directory / "weights.bin", b"of the other")}
        other_has_written.set()
        first.join(60)
        return files

    first.start()
    assert first_has_written.wait(60)
    saved = publish(root, 300, write_other, {})
    assert not first.is_alive()
    assert ["weights.bin cannot be read" in words for words in heard] == [True]
    assert latest_good(root) == store.RestoreSearch(verify(saved.path), [])
    assert (saved.path / "weights.bin").read_bytes() == b"of the other"


def test_a_lost_worker_cannot_write_into_what_is_being_swept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over = root / ".step-00000300.0f.partial"
    left_over.mkdir()
    remove_tree, heard = shutil.rmtree, []

    def remove_slowly(path: Path) -> None:
        try:
            put(left_over / "rank-00001.bin", b"late")
        except FileNotFoundError:
            heard.append(path)
        remove_tree(path)

    monkeypatch.setattr(shutil, "rmtree", remove_slowly)
    sweep(root)
    assert len(heard) == 1
    assert names(root) == ["step-00000100", "step-00000200"]


def test_a_failing_write_is_told_and_leaves_nothing(root: Path) -> None:
    def fail(directory: Path) -> Files:
        write(directory)
        raise ValueError("no such tensor")

    with pytest.raises(CheckpointError, match=r"write failed.*rank 0: ValueError: no such tensor"):
        publish(root, 300, fail, NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (FileDigest(3, ""), r"rank-00001\.bin cannot be read"),  # On another machine's own disk.
        (FileDigest(5121, ""), r"weights\.bin has 5120 bytes instead of 5121"),
    ],
)
def test_files_that_rank_0_does_not_see_whole_are_an_error(
    entry: FileDigest, words: str, root: Path
) -> None:
    name = "rank-00001.bin" if entry.bytes == 3 else "weights.bin"
    with pytest.raises(CheckpointError, match=words):
        publish(root, 300, lambda directory: {**write(directory), name: entry}, NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]


def fill_the_disk_with(name: str) -> Write:
    """A writer whose file `name` meets a full disk: the kernel's own, /dev/full."""

    def write_until_full(directory: Path) -> Files:
        files = write(directory)
        (directory / name).symlink_to("/dev/full")
        if name != MANIFEST:
            durable.write(directory / name, [b"more than fits"])
        return files

    return write_until_full


@pytest.mark.parametrize("name", ["more.bin", MANIFEST])
def test_a_full_disk_is_told_and_the_last_good_one_stays(root: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"No space left on device; [\d,]+ MB were free"):
        publish(root, 300, fill_the_disk_with(name), NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 200


def save_on_two(root: Path) -> None:
    """Saves of a group of two; whatever one of them meets, both must hear it."""
    rank = dist.get_rank()

    def write_mine(directory: Path) -> Files:
        name = f"rank-{rank}.bin"
        return {name: put(directory / name, bytes([rank]) * 99)}

    def fail_on(failing: int) -> Write:
        return fill_the_disk_with("more.bin") if rank == failing else write_mine

    saved = publish(root, 100, write_mine, {"world_size": 2})
    assert saved == verify(root / "step-00000100")
    assert set(json.loads((saved.path / MANIFEST).read_text())["files"]) == {
        "rank-0.bin",
        "rank-1.bin",
    }

    def nothing_is_left() -> bool:
        dist.barrier()
        left = names(root)
        dist.barrier()  # Only then may somebody begin the next save.
        return left == ["step-00000100"]

    for failing in (0, 1):
        with pytest.raises(CheckpointError, match=f"rank {failing}: OSError.*No space left"):
            publish(root, 200, fail_on(failing), {})
        assert nothing_is_left()
    with pytest.raises(CheckpointError, match="two workers wrote a file of the same name"):
        publish(root, 200, lambda directory: {"all.bin": put(directory / "all.bin", b"all")}, {})
    assert nothing_is_left()
    publish(root, 300, write_mine, {})
    assert latest_good(root) == store.RestoreSearch(verify(root / "step-00000300"), [])


@pytest.mark.slow
def test_a_failure_on_one_worker_is_heard_by_all(tmp_path: Path) -> None:
    run_group(save_on_two, 2, tmp_path, tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == ["step-00000100", "step-00000300"]
