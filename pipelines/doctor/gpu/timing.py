"""Measures times on a device with its own clock."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(
    act: Callable[[], object],
    device: torch.device,
    *,
    rounds: int = 5,
    calls: int = 1,
    warm: int = 3,
) -> float:
    """Seconds of a call: the median over `rounds` of the mean of `calls` calls without a pause.

    Within a round the host may run ahead of the device, as it does in training.
    """
    for _ in range(warm):
        act()
    synchronize(device)
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            act()
        synchronize(device)
        found.append((time.perf_counter() - begin) / calls)
    return statistics.median(found)
