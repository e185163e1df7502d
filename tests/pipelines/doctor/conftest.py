"""Machines as the doctor may find them: control groups, broken libraries, commands, disks."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.doctor.interpreter import Interpreter
from pipelines.runtime import limits

Patch = pytest.MonkeyPatch
Write = Callable[[str, str], None]
Enter = Callable[[str, dict[str, str]], None]


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: Patch) -> Enter:
    """Puts this process in the control group that a line of /proc/self/cgroup names."""

    def enter(line: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(line + "\n")
        for name, value in files.items():
            file = tmp_path / "groups" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")
        monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "own")
        monkeypatch.setattr(limits, "CGROUPS", tmp_path / "groups")

    return enter


@pytest.fixture
def stub_module(tmp_path: Path, monkeypatch: Patch) -> Write:
    """Puts a module of that name before the installed one, for processes started by the test."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    (tmp_path / "stubs").mkdir()

    def write(name: str, code: str) -> None:
        (tmp_path / "stubs" / f"{name}.py").write_text(code)

    return write


@pytest.fixture
def command(tmp_path: Path, monkeypatch: Patch) -> Write:
    """Empties PATH, and puts shell scripts on it."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    monkeypatch.setenv("PATH", str(bin_dir))

    def write(name: str, script: str) -> None:
        (bin_dir / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_dir / name).chmod(0o755)

    return write


@pytest.fixture
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as made:
        yield made


def free_space(monkeypatch: Patch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
