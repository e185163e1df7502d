"""The Triton depthwise: equal to the plain one in the interpreter, and compiled for real GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from convnextv2.kernels.triton_depthwise import available
from tests.convnextv2.triton_cases import CASES

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, Any]]:
    printed = run("-m", "tests.convnextv2.triton_cases", TRITON_INTERPRET="1")
    return [json.loads(line) for line in printed.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_the_plain_one_with_every_gradient(
    number: int, interpreted: list[dict[str, Any]]
) -> None:
    result, dtype = interpreted[number], getattr(torch, CASES[number].dtype)
    assert result["case"] == str(CASES[number])
    assert result["errors"].keys() == {"out", "x", "weight", "bias"}
    # Sums are taken in fp32 at least, so that the result is rounded to its dtype once.
    for name, error in result["errors"].items():
        assert error < 4 * torch.finfo(dtype).eps, name


def test_compiles_for_nvidia_processors(tmp_path: Path) -> None:
    # The interpreter takes more than the compiler does.
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    sizes = json.loads(run("-m", "tests.convnextv2.triton_compiled", "80", "90", **environment))
    # Two processors, four dtypes; forward, backward to the input, backward to the weight.
    assert len(sizes) == 2 * 4 * 3
    assert min(sizes.values()) > 0


def test_takes_tensors_on_gpus_only() -> None:
    with FakeTensorMode():
        assert available(torch.empty(1, device="cuda"))
        assert not available(torch.empty(1, device="cuda", dtype=torch.int32))
        assert not available(torch.empty(1, device="cpu"))


def test_is_imported_without_triton_and_then_not_available() -> None:
    code = (
        "import sys, torch\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "mode = FakeTensorMode()\n"
        "sys.modules['triton'] = None\n"
        "from convnextv2.kernels.triton_depthwise import available\n"
        "with mode: print(available(torch.empty(1, device='cuda')))\n"
    )
    assert run("-c", code) == "False\n"
