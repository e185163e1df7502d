"""The Triton kernels: equal to plain PyTorch in the interpreter, and compiled for real GPUs."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convnextv2 import kernels
from convnextv2.encoder import ConvNeXtV2
from convnextv2.kernels import gpu
from convnextv2.sparse.gather import VisiblePatches
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
    case, result = CASES[number], interpreted[number]
    assert result["case"] == json.loads(json.dumps(asdict(case)))
    assert tuple(result["errors"]) == case.names
    # Sums are taken in fp32 at least, so that the result is rounded to its dtype once.
    for name, error in result["errors"].items():
        assert error < 8 * torch.finfo(getattr(torch, case.dtype)).eps, name
    assert result["repeats"]
