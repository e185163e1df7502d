"""A checkpoint is whole or not there: damage, kills and full disks at every moment of a save."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from cluster import checkpoint
from cluster.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointError,
    latest_good,
    prune,
    publish,
    sweep,
    verify,
)
from tests.cluster.workers import run_group

NOTES = {"world_size": 1, "betas": (0.9, 0.95), "nested": {"lr": 1e-3, "b": None, "a": "ü"}}


def write(directory: Path) -> None:
    (directory / "weights.pt").write_bytes(bytes(range(256)) * 20)
    (directory / "deep").mkdir()
    (directory / "deep" / "zero_pp_rank_0_states.pt").write_bytes(b"moments")


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
    assert (search.found.path / "deep" / "zero_pp_rank_0_states.pt").read_bytes() == b"moments"


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert latest_good(tmp_path / "nowhere").found is None
    (tmp_path / "step-12").mkdir()
    (tmp_path / ".step-00000100.partial").mkdir()
    assert latest_good(tmp_path) == checkpoint.Search(None, [])


def flip_a_byte(step: Path) -> None:
    content = bytearray((step / "weights.pt").read_bytes())
    content[2000] ^= 1
    (step / "weights.pt").write_bytes(content)


def cut_short(step: Path) -> None:
    os.truncate(step / "weights.pt", 4096)


def lose_a_file(step: Path) -> None:
    (step / "deep" / "zero_pp_rank_0_states.pt").unlink()


def lose_the_manifest(step: Path) -> None:
    (step / MANIFEST).unlink()


def cut_the_manifest_short(step: Path) -> None:
    os.truncate(step / MANIFEST, 40)


def replace_the_manifest(step: Path) -> None:
    (step / MANIFEST).write_text("[]")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_byte, "weights.pt has changed"),
    (cut_short, "weights.pt has 4096 bytes instead of 5120"),
    (lose_a_file, "deep/zero_pp_rank_0_states.pt cannot be read"),
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


def test_prune_keeps_the_newest(root: Path) -> None:
    publish(root, 300, write, NOTES)
    prune(root, 2)
    assert names(root) == ["step-00000200", "step-00000300"]
    prune(root, 5)
    assert names(root) == ["step-00000200", "step-00000300"]
    with pytest.raises(ValueError, match="keep_last is 0; at least 1"):
        prune(root, 0)
    assert names(root) == ["step-00000200", "step-00000300"]


def test_sweeping_takes_what_was_half_written_and_nothing_else(root: Path) -> None:
    (root / ".step-00000300.partial").mkdir()
    write(root / ".step-00000300.partial")
    sweep(root)
    assert names(root) == ["step-00000100", "step-00000200"]
    sweep(root / "nowhere")


def test_rewriting_a_rejected_step_keeps_the_evidence(root: Path) -> None:
    flip_a_byte(root / "step-00000200")
    evidence = (root / "step-00000200" / "weights.pt").read_bytes()
    publish(root, 200, write, NOTES)
    assert latest_good(root) == checkpoint.Search(verify(root / "step-00000200"), [])
    (aside,) = root.glob("step-00000200.rejected-*")
    assert (aside / "weights.pt").read_bytes() == evidence
    prune(root, 1)
    assert names(root) == ["step-00000200", aside.name]


def test_pruning_to_one_never_takes_a_damaged_later_step_for_the_newest(root: Path) -> None:
    publish(root, 300, write, NOTES)
    cut_short(root / "step-00000200")
    flip_a_byte(root / "step-00000300")
    publish(root, 150, write, NOTES)  # Training went on from step 100.
    prune(root, 1)
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 150
    assert sorted(name.partition("-rejected")[0][:13] for name in names(root)) == [
        "step-00000150",
        "step-00000200",
        "step-00000300",
    ]


def test_a_failing_write_is_told_and_leaves_nothing(root: Path) -> None:
    def fail(directory: Path) -> None:
        write(directory)
        raise ValueError("no such tensor")

    with pytest.raises(CheckpointError, match=r"write failed.*rank 0: ValueError: no such tensor"):
        publish(root, 300, fail, NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]


def fill_the_disk_with(name: str) -> Callable[[Path], None]:
    """A writer whose file `name` meets a full disk: the kernel's own, /dev/full."""

    def write_until_full(directory: Path) -> None:
        write(directory)
        (directory / name).symlink_to("/dev/full")
        if name != MANIFEST:
            (directory / name).write_bytes(b"more than fits")

    return write_until_full


@pytest.mark.parametrize("name", ["rank-0.pt", MANIFEST])
def test_a_full_disk_is_told_and_the_last_good_one_stays(root: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"No space left on device; [\d,]+ MB were free"):
        publish(root, 300, fill_the_disk_with(name), NOTES)
    assert names(root) == ["step-00000100", "step-00000200"]
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 200


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(root: Path, moment: str) -> None:
    """Save step 300 in this process and be killed at the moment."""

    def write_half(directory: Path) -> None:
        write(directory)
        with (directory / "weights.pt").open("r+b") as file:
            file.truncate(100)
            die()

    if moment == "manifest":
        checkpoint._commit = die
    if moment == "rename":
        os.replace = die
    if moment == "renamed":
        checkpoint._sync_folder = lambda folder: die() if folder == root else None
    publish(root, 300, write_half if moment == "write" else write, NOTES)
    if moment == "prune":
        shutil.rmtree = die  # type: ignore[assignment]
        prune(root, 1)


@pytest.mark.parametrize(
    ("moment", "last_good"),
    [("write", 200), ("manifest", 200), ("rename", 200), ("renamed", 300), ("prune", 300)],
)
def test_a_kill_at_any_moment_leaves_a_good_one(root: Path, moment: str, last_good: int) -> None:
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload([__name__])
    saver = clean.Process(target=save_and_die, args=(root, moment))
    saver.start()
    saver.join()
    assert saver.exitcode == -signal.SIGKILL

    search = latest_good(root)
    assert search.rejected == []
    assert search.found is not None
    assert search.found.step == last_good
    assert (len(list(root.glob(".step-*.partial"))) == 1) is (moment != "renamed")

    publish(root, 400, write, NOTES)
    assert list(root.glob(".*")) == [], "the next save sweeps what a kill left"
    search = latest_good(root)
    assert search.found is not None
    assert search.found.step == 400


def save_on_two(root: Path) -> None:
    """Saves of a group of two; whatever one of them meets, both must hear it."""
    rank = dist.get_rank()

    def write_mine(directory: Path) -> None:
        (directory / f"bf16_zero_pp_rank_{rank}_optim_states.pt").write_bytes(bytes([rank]) * 99)
        if rank == 0:
            (directory / "weights.pt").write_bytes(b"all")

    def fail_on(failing: int) -> Callable[[Path], None]:
        def write_or_fail(directory: Path) -> None:
            write_mine(directory)
            if rank == failing:
                fill_the_disk_with("more.pt")(directory)

        return write_or_fail

    saved = publish(root, 100, write_mine, {"world_size": 2})
    assert saved == verify(root / "step-00000100")
    assert set(json.loads((saved.path / MANIFEST).read_text())["files"]) == {
        "bf16_zero_pp_rank_0_optim_states.pt",
        "bf16_zero_pp_rank_1_optim_states.pt",
        "weights.pt",
    }
    for failing in (0, 1):
        with pytest.raises(CheckpointError, match=f"rank {failing}: OSError.*No space left"):
            publish(root, 200, fail_on(failing), {})
        dist.barrier()
        assert names(root) == ["step-00000100"]
    publish(root, 300, write_mine, {})
    assert latest_good(root) == checkpoint.Search(verify(root / "step-00000300"), [])


@pytest.mark.slow
def test_a_failure_on_one_worker_is_heard_by_all(tmp_path: Path) -> None:
    run_group(save_on_two, 2, tmp_path, tmp_path / "checkpoints")
    assert names(tmp_path / "checkpoints") == ["step-00000100", "step-00000300"]
