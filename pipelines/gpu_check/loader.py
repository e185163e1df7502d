"""Part `loader`: whether batches reach the device whole while their buffers are used again.

A loader fills page-locked buffers and uses each again once the next batch is asked for. Copies to
the device are asynchronous, so a device that is busy copies late: pixels of a later batch, under
the labels of this one. The part makes the device late on purpose.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipelines.gpu_check.parts import Row, Setting, Skipped
from pipelines.gpu_check.workload import random_pixels

BATCHES, BUFFERS = 17, 2
LATE_CYCLES = 20_000_000
"""Of the device's clock: about 10 ms, many times what the copy takes."""


def loader(setting: Setting) -> Iterator[Row]:
    """Batches that arrived whole, of those sent while the device was late."""
    device = torch.device(setting.device)
    if not setting.on_gpu:
        raise Skipped("on a CPU batches are not copied; the tests simulate a late copy")
    batch, side = (8, 32) if setting.quick else (64, 224)
    sent = [random_pixels(batch, side, torch.device("cpu"), seed) for seed in range(BATCHES)]
    arrived = []
    for pixels in reused_buffers(sent):
        torch.cuda._sleep(LATE_CYCLES)
        arrived.append(pixels.to(device, non_blocking=True))
    wrong = sum(not torch.equal(a.cpu(), b) for a, b in zip(arrived, sent, strict=True))
    problem = f"{wrong} of {BATCHES} batches were overwritten on the way" if wrong else ""
    yield Row("late copies", {"batches": float(BATCHES), "overwritten": float(wrong)}, problem)


def reused_buffers(batches: list[Tensor]) -> Iterator[Tensor]:
    """Serve batches from page-locked buffers in turn, as FFCV does."""
    ring = [torch.empty_like(batches[0]).pin_memory() for _ in range(BUFFERS)]
    for number, batch in enumerate(batches):
        buffer = ring[number % BUFFERS]
        buffer.copy_(batch)
        yield buffer
