"""Outputs that are not as they were written: found before anybody reads them, and kept."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.graph import (
    COMPLETE,
    DamageError,
    Outputs,
    Pipeline,
    StageContext,
    complete,
    hash_files,
)
from tests.pipelines.graph.kitchen import Kitchen, flip, only


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_text("")


DAMAGE = [
    (remove, "out is gone"),
    (cut, r"out has 0 bytes instead of \d+"),
    (flip, r"out has changed since it was written \(sha256 differs\)"),
]


@pytest.mark.parametrize(("harm", "words"), DAMAGE)
def test_a_damaged_output_is_set_aside_and_made_again(
    kitchen: Kitchen, harm: Callable[[Path], None], words: str
) -> None:
    kitchen.run()
    out = only(kitchen.root, "stages/bread/*/out")
    good = out.read_bytes()
    harm(out)
    harmed = out.read_bytes() if out.exists() else None
    status, reason = kitchen.run()["bread"]
    assert kitchen.runs == ["bread"]
    assert status == "resumed"
    assert re.match(words, reason)
    assert out.read_bytes() == good
    if harmed is not None:
        kept = only(out.parent, "out.damaged-*")
        assert reason.endswith(f"and is kept as {kept.name}")
        assert kept.read_bytes() == harmed
    assert {status for status, _ in kitchen.run().values()} == {"done"}


@pytest.mark.parametrize(("harm", "words"), DAMAGE)
def test_damage_that_a_person_must_mend_is_refused(
    kitchen: Kitchen, harm: Callable[[Path], None], words: str
) -> None:
    kitchen.advice = "Bake again with --rerun bread"
    kitchen.run()
    out = only(kitchen.root, "stages/bread/*/out")
    harm(out)
    with pytest.raises(DamageError, match=f"{out.parent}/{words}. Bake again with --rerun bread"):
        kitchen.run()
    assert kitchen.runs == []
    assert kitchen.run(rerun="bread")["bread"] == ("run", "it was asked for again")
    assert out.read_text().startswith("bread")


def test_a_torn_record_of_completion_is_damage_too(kitchen: Kitchen) -> None:
    kitchen.run()
    record = only(kitchen.root, f"stages/bread/*/{COMPLETE}")
    record.write_text(record.read_text()[:50])
    status, reason = kitchen.run()["bread"]
    assert status == "resumed"
    assert reason.startswith("COMPLETE.json cannot be read: ")
    only(record.parent, "COMPLETE.json.damaged-*")
    assert {status for status, _ in kitchen.run().values()} == {"done"}


def test_an_input_that_has_changed_in_between_is_not_read(kitchen: Kitchen) -> None:
    kitchen.run()
    pipeline = kitchen.pipeline()
    bread, butter, toast = pipeline.stages

    def spoil(context: StageContext) -> Outputs:
        flip(only(kitchen.root, "stages/bread/*/out"))
        return butter.run(context)

    spoiling = dataclasses.replace(butter, run=spoil, settings={"milk": 2})
    changed = dataclasses.replace(toast, settings={"jam": True})
    kitchen.runs = []
    with pytest.raises(DamageError, match=r"out has changed .*, and toast was to read it"):
        Pipeline(kitchen.root, [bread, spoiling, changed]).run()
    assert kitchen.runs == ["butter"]


def test_files_are_hashed_once_for_each_time_they_are_written(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kitchen.run()
    hashed: list[str] = []

    def counting(directory: Path, *names: str) -> Outputs:
        hashed.extend(f"{directory.parent.name}/{name}" for name in names)
        return hash_files(directory, *names)

    monkeypatch.setattr(complete, "hash_files", counting)
    kitchen.run()
    assert hashed == []
    os.utime(only(kitchen.root, "stages/butter/*/out"))
    assert {status for status, _ in kitchen.run().values()} == {"done"}
    assert hashed == ["butter/out"]
    kitchen.run()
    assert hashed == ["butter/out"]
    copied = Kitchen(shutil.copytree(kitchen.root, tmp_path / "copy"))
    assert {status for status, _ in copied.run().values()} == {"done"}
    assert sorted(hashed) == ["bread/out", "butter/out", "butter/out", "toast/out"]


def test_a_long_read_is_said(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.run()
    monkeypatch.setattr(complete, "LONG_READ_BYTES", 3)
    out = only(kitchen.root, "stages/butter/*/out")
    os.utime(out)
    kitchen.run()
    assert kitchen.said == [f"reading 0 GB in {out.parent}, to see that they are as written"]


def test_that_a_stage_is_done_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    seen = []

    def see(descriptor: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / COMPLETE).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", see)
    complete.mark_complete(tmp_path, {}, {}, 1.0, [])
    assert seen == [(str(tmp_path / f".{COMPLETE}.partial"), False), (str(tmp_path), True)]
