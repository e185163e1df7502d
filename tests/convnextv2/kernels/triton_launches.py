"""What the host does to start a Triton program, without a GPU; prints one JSON line.

A program of its own, because Triton must not be in interpreter mode, and because it is given a
driver: one that says it is an H100's, and starts nothing.
"""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch.library import wrap_triton
from triton.backends.nvidia.driver import CudaDriver

from convnextv2.kernels.gpu import norm_programs
from convnextv2.kernels.gpu.launch import launch

STREAM, FUNCTION = 5, 7
TIMES = 2000
arrived: list[tuple[Any, ...]] = []


class Launcher:
    """Notes what it is to start."""

    def __init__(self, source: object, metadata: object) -> None:
        pass

    def __call__(self, *arguments: object) -> None:
        arrived[:] = [arguments]


class Driver(CudaDriver):
    """Compiled programs are loaded as FUNCTION and go to STREAM."""

    def __init__(self) -> None:
        self.launcher_cls = Launcher
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: STREAM
        self.get_device_capability = lambda device: (9, 0)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda *binary: (1, FUNCTION, 32, 0, 1024),
            unload_module=lambda module: None,
        )


def main() -> None:
    triton.runtime.driver.set_active(Driver())
    x, out = torch.empty(2, 64, 40, dtype=torch.bfloat16)
    weight, bias = torch.empty(2, 40, dtype=torch.bfloat16)
    constants = {"C": 40, "EPS": 1e-6, "ROWS": 32, "CHANNELS": 64, "SUM": triton.language.float32}
    arguments = x, weight, bias, out, 64
    program, grid = norm_programs.normalise, (2,)
    times = {
        "dispatched": microseconds(
            lambda: wrap_triton(program)[grid](*arguments, **constants, num_warps=4)
        ),
        "launched": microseconds(
            lambda: launch(program, grid, *arguments, **constants, num_warps=4)
        ),
    }
    (call,) = arrived
    tensors = [one is other for one, other in zip(call[-10:-6], arguments, strict=False)]
    numbers = [*call[:5], *call[-6:-1]]
    print(json.dumps({"numbers": numbers, "tensors": tensors, "microseconds": times}))


def microseconds(start: Callable[[], object]) -> float:
    """The processor's time for one start, after a first one that compiles."""
    start()
    begin = time.process_time()
    for _ in range(TIMES):
        start()
    return round((time.process_time() - begin) / TIMES * 1e6, 1)


if __name__ == "__main__":
    main()
