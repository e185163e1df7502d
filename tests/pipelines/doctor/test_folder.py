"""Every check of a folder for runs is made to fail, and must then say what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipelines.doctor import folder
from pipelines.doctor.check import GB, Check
from tests.pipelines.doctor.conftest import Patch, free_space


@pytest.mark.parametrize(("free", "status"), [(1, "fail"), (10, "warn"), (300, "ok")])
def test_disk(free: int, status: str, tmp_path: Path, monkeypatch: Patch) -> None:
    free_space(monkeypatch, free * GB)
    check = folder.disk(tmp_path)
    assert check.status == status
    assert ("free some" in check.advice) == (status != "ok")


@pytest.mark.parametrize("make_check", [folder.durable_writes, folder.database])
def test_a_folder_that_cannot_be_written(
    make_check: Callable[[Path], Check], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for run_dir in (Path("/proc/runs"), tmp_path / "file", tmp_path / "file" / "runs"):
        check = make_check(run_dir)
        assert check.status == "fail"
        assert "run folder" in check.advice


@pytest.mark.parametrize("make_check", [folder.durable_writes, folder.database])
def test_a_folder_is_left_as_it_was(make_check: Callable[[Path], Check], tmp_path: Path) -> None:
    assert make_check(tmp_path / "runs" / "first").status == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_system_without_durable_writes(
    broken: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(f"{broken} is not supported")

    monkeypatch.setattr(os, broken, refuse)
    check = folder.durable_writes(tmp_path)
    assert (check.status, check.found) == ("fail", f"{broken} is not supported")


def test_a_database_whose_locks_do_not_hold(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(folder, "run", lambda *command: (0, "got in"))
    check = folder.database(tmp_path)
    assert (check.status, "do not hold" in check.found) == ("fail", True)
    assert "local disk" in check.advice


def test_a_database_over_the_network(tmp_path: Path, monkeypatch: Patch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    check = folder.database(tmp_path / "runs")
    assert (check.status, "nfs4" in check.found) == ("warn", True)
    assert "local disk" in check.advice
