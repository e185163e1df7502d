"""Every check of a library is made to fail, and must then say what to do."""

from pathlib import Path

import pytest

from pipelines.doctor import libraries
from pipelines.doctor.check import Check
from pipelines.doctor.interpreter import Interpreter
from tests.pipelines.doctor.conftest import Patch, Write

NO_GPU = "class cuda: device_count = staticmethod(lambda: 0)\nclass version: cuda = None"


def test_a_gpu_that_torch_does_not_see(
    command: Write, stub_module: Write, interpreter: Interpreter
) -> None:
    command("nvidia-smi", "echo 8; echo 8")
    stub_module("torch", NO_GPU)
    check = libraries.gpus(interpreter)
    assert (check.status, "8 listed" in check.found) == ("fail", True)
    assert "CUDA_VISIBLE_DEVICES" in check.advice


def test_a_driver_that_does_not_answer(command: Write, interpreter: Interpreter) -> None:
    command("nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    check = libraries.gpus(interpreter)
    assert (check.status, check.found) == ("fail", "nvidia-smi: Driver/library version mismatch")
    assert "driver" in check.advice


def test_no_gpu_is_no_fault(command: Write, stub_module: Write, interpreter: Interpreter) -> None:
    stub_module("torch", NO_GPU)
    assert libraries.gpus(interpreter) == Check("GPUs", "ok", "none: training runs on the CPU")


def test_a_library_that_is_not_there(interpreter: Interpreter) -> None:
    check = libraries.library("nosuchlibrary", interpreter)
    assert (check.status, check.found) == ("fail", "not installed")
    assert "make setup" in check.advice


def test_an_optional_library_that_is_not_there_is_no_fault(
    monkeypatch: Patch, interpreter: Interpreter
) -> None:
    monkeypatch.setattr(libraries.metadata, "distributions", list)
    check = libraries.library("spconv", interpreter)
    assert (check.status, check.found) == ("warn", "not installed, and optional")
    assert "pip install 'convnextv2[spconv]'" in check.advice
    assert libraries.library("ray", interpreter).status == "fail"


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
    check = libraries.library("numpy", interpreter)
    assert (check.status, found in check.found) == ("fail", True)
    assert "make setup" in check.advice


def test_a_library_of_another_version(
    tmp_path: Path, monkeypatch: Patch, interpreter: Interpreter
) -> None:
    monkeypatch.setattr(libraries, "PINS", tmp_path / "constraints.txt")
    assert libraries.library("numpy", interpreter).status == "warn"
    libraries.PINS.write_text("numpydoc==1.2\nnumpy==1.2.3\n")
    check = libraries.library("numpy", interpreter)
    assert check.status == "warn"
    assert "tested with 1.2.3" in check.advice
    libraries.PINS.write_text(f"numpy=={check.found}\n")
    assert libraries.library("numpy", interpreter).status == "ok"


def test_every_library_looked_at_has_a_pin() -> None:
    pinned = {line.partition("==")[0] for line in libraries.PINS.read_text().splitlines()}
    assert set(libraries.PINNED) <= pinned


@pytest.mark.slow
def test_ray_that_does_not_start(
    tmp_path: Path, monkeypatch: Patch, interpreter: Interpreter
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 25)))
    check = libraries.ray_starts(interpreter)
    assert check.status == "fail"
    assert "AF_UNIX path length" in check.found
    assert "logs" in check.advice


@pytest.mark.slow
def test_ray_starts_here(interpreter: Interpreter) -> None:
    assert libraries.ray_starts(interpreter) == Check("Ray", "ok", "one task answered 42")
