"""How the Triton programs are started. Nothing is run: there may be no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from triton.runtime.jit import JITFunction

from convnextv2.kernels import gpu
from convnextv2.kernels.gpu import norm_programs
from convnextv2.kernels.gpu.launch import launch

Started = list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What Triton is asked to start: program, grid, arguments, constants."""
    found: Started = []

    def run(
        program: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **constants: Any
    ) -> None:
        found.append((program, grid, arguments, constants))

    monkeypatch.setattr(JITFunction, "run", run)
    return found


def leaves() -> list[Tensor]:
    return [torch.zeros(3, 8), torch.zeros(8), torch.zeros(8)]


def test_a_launch_is_short_on_the_host(started: Started) -> None:
    """Small steps are as fast as the host starts their kernels. Its work is counted in calls."""
    tensors, constants = leaves(), {"C": 8, "num_warps": 4}
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    for _ in range(2):
        calls = 0
        sys.setprofile(count)
        try:
            launch(norm_programs.normalise, (3,), *tensors, 3, **constants)
        finally:
            sys.setprofile(None)
    assert len(started) == 2
    program, grid, arguments, given = started[-1]
    assert program is norm_programs.normalise
    assert grid == (3,)
    assert given == constants
    assert all(one is other for one, other in zip(arguments, (*tensors, 3), strict=True))
    # By way of PyTorch's dispatcher it takes several hundred.
    assert calls < 30


@pytest.mark.slow
def test_what_is_launched_arrives_at_the_driver(tmp_path: Path) -> None:
    # The interpreter has no driver.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.convnextv2.kernels.triton_launches"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    # The grid, stream, compiled function, then after the tensors rows and constants.
    assert found["numbers"] == [2, 1, 1, 5, 7, 64, 40, 1e-6, 32, 64]
    assert found["tensors"] == [True] * 4


def test_what_is_traced_has_the_programs_in_its_graph(started: Started) -> None:
    def normalise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gpu.layer_norm(x, weight, bias, 1e-6)

    graph = make_fx(normalise, tracing_mode="fake")(*leaves()).graph
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert any("triton_kernel_wrapper" in target for target in targets), targets
    assert not started
