"""Every check of the doctor is made to fail, and must then say what to do."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from pipelines import doctor
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


def sixty_four_cores(monkeypatch: Patch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def test_cores_are_those_of_the_narrowest_group_above(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    cgroup("0::/pod/box", {"pod/cpu.max": "50000 100000", "pod/box/cpu.max": "max 100000"})
    check = doctor.cores()
    assert (check.status, check.found) == ("warn", "0.5 of 64 usable")
    assert "train with one" in check.advice


def test_cores_of_a_version_one_group(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    files = {"cpu/box/cpu.cfs_quota_us": "400000", "cpu/box/cpu.cfs_period_us": "100000"}
    cgroup("3:cpu:/box", files)
    check = doctor.cores()
    assert (check.status, check.found) == ("warn", "4 of 64 usable")
    assert "OMP_NUM_THREADS=4" in check.advice


def test_cores_without_a_limit(cgroup: Enter, monkeypatch: Patch) -> None:
    sixty_four_cores(monkeypatch)
    cgroup("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert doctor.cores() == doctor.Check("cores", "ok", "64 of 64 usable")


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
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * doctor.GB))
    cgroup(line, {file: str(doctor.GB)})
    check = doctor.memory()
    assert check.status == status
    assert ("need 4 GB" in check.advice) == (status == "fail")


def test_memory_for_the_demo_alone(monkeypatch: Patch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=6 * doctor.GB))
    assert doctor.memory().status == "warn"


@pytest.mark.parametrize(
    ("free", "status"), [(4, "fail"), (64, "warn"), (300, "warn"), (2000, "ok")]
)
def test_shared_memory(free: int, status: str, monkeypatch: Patch) -> None:
    free_space(monkeypatch, free * doctor.MB)
    check = doctor.shared_memory()
    assert check.status == status
    assert ("--shm-size" in check.advice) == (status != "ok")


def test_compiler_missing(command: Write, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("CXX", raising=False)
    check = doctor.compiler()
    assert (check.status, check.found) == ("fail", "no g++ and no ninja")
    assert "apt-get install g++" in check.advice
    command("g++", "")
    assert doctor.compiler().found == "no ninja"
    command("ninja", "")
    assert doctor.compiler().status == "ok"


def test_python_that_nothing_was_pinned_for(monkeypatch: Patch) -> None:
    version = namedtuple("version", "major minor")
    monkeypatch.setattr(sys, "version_info", version(3, 13))
    check = doctor.python()
    assert check.status == "warn"
    assert "PYTHON=python3.11 make setup" in check.advice


def test_ray_address_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check = doctor.ray_clusters()
    assert (check.status, check.found) == ("warn", "RAY_ADDRESS=10.0.0.1:6379")
    assert "unset RAY_ADDRESS" in check.advice


def test_a_running_cluster_is_noticed(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    head = tmp_path / "gcs_server"
    shutil.copy(shutil.which("sleep") or "", head)
    with subprocess.Popen([head, "60"]) as process:
        check = doctor.ray_clusters()
        process.kill()
    assert check.status == "warn"
    assert str(process.pid) in check.found
    assert "ray stop" in check.advice


NO_GPU = "class cuda: device_count = staticmethod(lambda: 0)\nclass version: cuda = None"


def test_a_gpu_that_torch_does_not_see(
    command: Write, stub_module: Write, interpreter: Interpreter
) -> None:
    command("nvidia-smi", "echo 8; echo 8")
    stub_module("torch", NO_GPU)
    check = doctor.gpus(interpreter)
    assert (check.status, "8 listed" in check.found) == ("fail", True)
    assert "CUDA_VISIBLE_DEVICES" in check.advice


def test_a_driver_that_does_not_answer(command: Write, interpreter: Interpreter) -> None:
    command("nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    check = doctor.gpus(interpreter)
    assert (check.status, check.found) == ("fail", "nvidia-smi: Driver/library version mismatch")
    assert "driver" in check.advice


def test_no_gpu_is_no_fault(command: Write, stub_module: Write, interpreter: Interpreter) -> None:
    stub_module("torch", NO_GPU)
    assert doctor.gpus(interpreter) == doctor.Check("GPUs", "ok", "none: training runs on the CPU")


def test_a_library_that_is_not_there(interpreter: Interpreter) -> None:
    check = doctor.library("nosuchlibrary", interpreter)
    assert (check.status, check.found) == ("fail", "not installed")
    assert "make setup" in check.advice


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("raise ImportError('libopencv_core.so.406: no such file')", "libopencv_core.so.406"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_library_that_does_not_import(
    code: str, found: str, stub_module: Write, interpreter: Interpreter
) -> None:
    stub_module("numpy", code)
    check = doctor.library("numpy", interpreter)
    assert (check.status, found in check.found) == ("fail", True)
    assert "make setup" in check.advice


def test_a_library_of_another_version(
    tmp_path: Path, monkeypatch: Patch, interpreter: Interpreter
) -> None:
    monkeypatch.setattr(doctor, "PINS", tmp_path / "constraints.txt")
    assert doctor.library("numpy", interpreter).status == "warn"
    doctor.PINS.write_text("numpydoc==1.2\nnumpy==1.2.3\n")
    check = doctor.library("numpy", interpreter)
    assert check.status == "warn"
    assert "tested with 1.2.3" in check.advice
    doctor.PINS.write_text(f"numpy=={check.found}\n")
    assert doctor.library("numpy", interpreter).status == "ok"


def test_every_library_looked_at_has_a_pin() -> None:
    pinned = {line.partition("==")[0] for line in doctor.PINS.read_text().splitlines()}
    assert set(doctor.PINNED) <= pinned


def test_ray_that_does_not_start(stub_module: Write, interpreter: Interpreter) -> None:
    stub_module("ray", "def init(**_): raise RuntimeError('The current node timed out')")
    check = doctor.ray_starts(interpreter)
    assert check.status == "fail"
    assert "The current node timed out" in check.found
    assert "logs" in check.advice


@pytest.mark.slow
def test_ray_starts_here(interpreter: Interpreter) -> None:
    assert doctor.ray_starts(interpreter) == doctor.Check("Ray", "ok", "one task answered 42")


def test_a_process_that_hangs_is_ended() -> None:
    assert doctor._run("sleep", "600", timeout=0.1) == (1, "no answer within 0.1 s")


def test_libraries_are_imported_in_one_process(interpreter: Interpreter) -> None:
    code, first = interpreter.run("import os; print('noise'); print(os.getpid())")
    assert (code, interpreter.run("import os; print(os.getpid())")) == (0, (0, first))
    assert int(first) != os.getpid()
    assert interpreter.run("raise ValueError('bad')") == (1, "ValueError: bad")
    assert interpreter.run("import sys; sys.exit('no licence')") == (1, "SystemExit: no licence")


def test_what_a_library_prints_is_no_answer(interpreter: Interpreter) -> None:
    assert interpreter.run("import os; os.write(1, b'from C'); print(6)") == (0, "6")
    assert interpreter.run("print(7)") == (0, "7")


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import os; os.abort()", (-6, "exit code -6")),
        ("import os; os.write(2, b'no AVX'); os._exit(3)", (3, "no AVX")),
        ("import time; time.sleep(600)", (1, "no answer within 0.5 s")),
    ],
)
def test_after_a_crash_the_others_are_looked_at(
    code: str, answer: tuple[int, str], interpreter: Interpreter
) -> None:
    _, before = interpreter.run("import os; print(os.getpid())")
    assert interpreter.run(code, timeout=0.5 if "sleep" in code else 60) == answer
    code_after, after = interpreter.run("import os; print(os.getpid())")
    assert (code_after, after == before) == (0, False)
    assert not psutil.pid_exists(int(before))


@pytest.mark.parametrize(("free", "status"), [(1, "fail"), (10, "warn"), (300, "ok")])
def test_disk(free: int, status: str, tmp_path: Path, monkeypatch: Patch) -> None:
    free_space(monkeypatch, free * doctor.GB)
    check = doctor.disk(tmp_path)
    assert check.status == status
    assert ("free some" in check.advice) == (status != "ok")


@pytest.mark.parametrize("make_check", [doctor.durable_writes, doctor.database])
def test_a_folder_that_cannot_be_written(
    make_check: Callable[[Path], doctor.Check], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for run_dir in (Path("/proc/runs"), tmp_path / "file", tmp_path / "file" / "runs"):
        check = make_check(run_dir)
        assert check.status == "fail"
        assert "run folder" in check.advice


@pytest.mark.parametrize("make_check", [doctor.durable_writes, doctor.database])
def test_a_folder_is_left_as_it_was(
    make_check: Callable[[Path], doctor.Check], tmp_path: Path
) -> None:
    assert make_check(tmp_path / "runs" / "first").status == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_a_file_system_without_durable_writes(
    broken: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(f"{broken} is not supported")

    monkeypatch.setattr(os, broken, refuse)
    check = doctor.durable_writes(tmp_path)
    assert (check.status, check.found) == ("fail", f"{broken} is not supported")


def test_a_database_whose_locks_do_not_hold(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "_run_python", lambda code: (0, "got in"))
    check = doctor.database(tmp_path)
    assert (check.status, "do not hold" in check.found) == ("fail", True)
    assert "local disk" in check.advice


def test_a_database_over_the_network(tmp_path: Path, monkeypatch: Patch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    check = doctor.database(tmp_path / "runs")
    assert (check.status, "nfs4" in check.found) == ("warn", True)
    assert "local disk" in check.advice


def test_the_report_keeps_the_order_and_every_word(tmp_path: Path, monkeypatch: Patch) -> None:
    advice = "reinstall [b]it[/b]: " + "x" * 100
    last = doctor.Check("last", "fail", "[12]", advice)
    monkeypatch.setattr(doctor, "SLOW", [lambda interpreter: last])
    checks = list(doctor.diagnose(tmp_path))
    assert [check.name for check in checks][:2] == ["cores", "memory"]
    assert [check.name for check in checks][-2:] == ["database", "last"]
    assert json.loads(json.dumps([asdict(check) for check in checks]))[-1]["advice"] == advice

    console = Console(record=True, width=80, file=io.StringIO(), soft_wrap=True, highlight=False)
    console.print(doctor.in_words(last))
    assert console.export_text() == f"fail  last            [12]\n      {advice}\n"


def test_what_is_known_is_said_while_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def not_yet(_: Interpreter) -> doctor.Check:
        raise AssertionError("the quick checks wait for the slow ones")

    monkeypatch.setattr(doctor, "SLOW", [not_yet])
    quick = itertools.islice(doctor.diagnose(tmp_path), len(doctor.QUICK) + len(doctor.FOLDER))
    assert [check.name for check in quick][-1] == "database"
