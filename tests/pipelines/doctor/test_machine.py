"""Every check of the machine is made to fail, and must then say what to do."""

import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipelines.doctor import machine
from pipelines.doctor.check import GB, MB, Check
from tests.pipelines.doctor.conftest import Enter, Patch, Write, free_space


def sixty_four_cores(monkeypatch: Patch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def test_cores_are_those_of_the_narrowest_group_above(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    cgroup("0::/pod/box", {"pod/cpu.max": "50000 100000", "pod/box/cpu.max": "max 100000"})
    check = machine.cores()
    assert (check.status, check.found) == ("warn", "0.5 of 64 usable")
    assert "train with one" in check.advice


def test_cores_of_a_version_one_group(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    files = {"cpu/box/cpu.cfs_quota_us": "400000", "cpu/box/cpu.cfs_period_us": "100000"}
    cgroup("3:cpu:/box", files)
    check = machine.cores()
    assert (check.status, check.found) == ("warn", "4 of 64 usable")
    assert "OMP_NUM_THREADS=4" in check.advice


def test_cores_without_a_limit(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    cgroup("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert machine.cores() == Check("cores", "ok", "64 of 64 usable")


@pytest.mark.parametrize(
    ("line", "file", "status"),
    [
        ("0::/box", "memory.max", "fail"),
        ("4:memory:/box", "memory/memory.limit_in_bytes", "fail"),
        ("0::/box", "box/memory.max", "fail"),
        ("0::/box", "other/memory.max", "ok"),
    ],
)
def test_memory_of_the_control_group(
    line: str,
    file: str,
    status: str,
    cgroup: Enter,
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    cgroup(line, {file: str(GB)})
    check = machine.memory()
    assert check.status == status
    assert ("need 4 GB" in check.advice) == (status == "fail")


def test_memory_for_the_demo_alone(monkeypatch: Patch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=6 * GB))
    assert machine.memory().status == "warn"


@pytest.mark.parametrize(
    ("free", "status"), [(4, "fail"), (64, "warn"), (300, "warn"), (2000, "ok")]
)
def test_shared_memory(free: int, status: str, monkeypatch: Patch) -> None:
    free_space(monkeypatch, free * MB)
    check = machine.shared_memory()
    assert check.status == status
    assert ("--shm-size" in check.advice) == (status != "ok")


def test_compiler_missing(command: Write, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("CXX", raising=False)
    check = machine.compiler()
    assert (check.status, check.found) == ("fail", "no g++ and no ninja")
    assert "apt-get install g++" in check.advice
    command("g++", "")
    assert machine.compiler().found == "no ninja"
    command("ninja", "")
    assert machine.compiler().status == "ok"


def test_python_that_nothing_was_pinned_for(monkeypatch: Patch) -> None:
    version = namedtuple("version", "major minor")
    monkeypatch.setattr(sys, "version_info", version(3, 13))
    check = machine.python()
    assert check.status == "warn"
    assert "PYTHON=python3.11 make setup" in check.advice


def test_ray_address_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check = machine.ray_clusters()
    assert (check.status, check.found) == ("warn", "RAY_ADDRESS=10.0.0.1:6379")
    assert "unset RAY_ADDRESS" in check.advice


def test_a_running_cluster_is_noticed(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head = tmp_path / "gcs_server"
    shutil.copy(shutil.which("sleep") or "", head)
    with subprocess.Popen([head, "60"]) as process:
        check = machine.ray_clusters()
        process.kill()
    assert check.status == "warn"
    assert str(process.pid) in check.found
    assert "ray stop" in check.advice


@pytest.fixture
def no_token_yet(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Where Ray's token would be."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray/auth_token"


def test_a_token_that_others_can_read(no_token_yet: Path) -> None:
    assert machine.ray_token().found == f"none yet; the first run writes {no_token_yet}"
    no_token_yet.write_text("abc")
    no_token_yet.chmod(0o640)
    check = machine.ray_token()
    assert (check.status, check.advice) == ("warn", f"chmod 600 {no_token_yet}")
    no_token_yet.chmod(0o600)
    assert machine.ray_token() == Check("Ray token", "ok", f"in {no_token_yet}")


def test_tokens_that_are_turned_off(no_token_yet: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check = machine.ray_token()
    assert (check.status, check.found) == ("warn", "off, because RAY_AUTH_MODE is set")
    assert "unset RAY_AUTH_MODE" in check.advice
    monkeypatch.setenv("RAY_AUTH_MODE", "tokne")
    check = machine.ray_token()
    assert (check.status, check.found) == (
        "fail",
        "RAY_AUTH_MODE=tokne is unknown; token or disabled would work",
    )


@pytest.mark.parametrize(
    ("mode", "status", "found"),
    [("disabled", "warn", "not used at 127"), ("token", "ok", "accepted at 127")],
)
def test_the_token_of_the_cluster_that_runs_join(
    mode: str, status: str, found: str, no_token_yet: Path, monkeypatch: Patch
) -> None:
    # What a cluster answers is asked of real ones in tests/cluster/ray/test_access.py.
    monkeypatch.setattr(machine, "mode_of", lambda address: mode)
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{cluster.getsockname()[1]}")
        check = machine.ray_token()
    assert (check.status, found in check.found) == (status, True)
    gone = machine.ray_token()
    assert (gone.status, "nothing answers there" in gone.found) == ("fail", True)
