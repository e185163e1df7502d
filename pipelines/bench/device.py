"""The device of a benchmark, and times measured with its own clock."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.gpu import UnusableGPU, open_gpu

if TYPE_CHECKING:
    import torch


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def name_of(device: str) -> str:
    """The name of the device, for the results.

    Raises:
        SystemExit: With status 1, after a sentence on why, when there is no usable GPU.
    """
    if device == "cpu":
        return "cpu"
    try:
        chosen = open_gpu()
    except UnusableGPU as error:
        print(f"{error}; --device cpu measures this machine's CPU", file=sys.stderr)
        raise SystemExit(1) from error
    import torch

    return torch.cuda.get_device_properties(chosen).name


def seconds_on(device: "torch.device", act: Callable[[], object]) -> float:
    """Seconds that a call takes; on a GPU between two events, without the overhead of the host."""
    if device.type == "cpu":
        begin = time.perf_counter()
        act()
        return time.perf_counter() - begin
    import torch

    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    act()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3
