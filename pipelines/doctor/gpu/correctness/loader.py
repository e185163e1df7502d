"""Part `loader`: whether batches reach the device intact although their buffers are reused.

A loader fills page-locked buffers, and may reuse a buffer once the next batch is requested. Copies
to the device are asynchronous: a busy device may copy so late that it gets the pixels of a later
batch with the labels of this one. This part keeps the device busy on purpose and sends batches
through `on_device`, as training does. It also sends plain copies, which must arrive overwritten:
this proves that the device was late.
"""

from collections.abc import Generator, Iterable, Iterator

import torch

from convnextv2.tasks.batch import Batch, on_device
from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.workload import random_pixels

BATCHES, BUFFERS = 17, 2
LATE_CYCLES = 20_000_000
"""Cycles of the device's clock to keep it busy: about 10 ms, far longer than the copy takes."""


def loader(setting: Setting) -> Iterator[Row]:
    """Count the batches that arrive overwritten when they are sent to a busy device."""
    device = torch.device(setting.device)
    if not setting.on_gpu:
        raise Skipped("on a CPU batches are not copied; the tests simulate a late copy")
    batch, side = (8, 32) if setting.quick else (64, 224)
    host = torch.device("cpu")
    sent = [
        Batch(
            random_pixels(batch, side, host, seed), torch.full((batch,), seed), torch.arange(0), 0
        )
        for seed in range(BATCHES)
    ]
    wrong = overwritten(on_device(reused_buffers(sent), device), sent)
    problem = f"{wrong} of {BATCHES} batches were overwritten on the way" if wrong else ""
    yield Row("as training copies", counts(wrong), problem)
    plain = overwritten((each.to(device) for each in reused_buffers(sent)), sent)
    problem = "" if plain else "plain copies were not late: the row above shows nothing"
    yield Row("plain copies", counts(plain), problem)


def counts(wrong: int) -> dict[str, float | str]:
    return {"batches": float(BATCHES), "overwritten": float(wrong)}


def overwritten(arriving: Iterable[Batch], sent: list[Batch]) -> int:
    """How many batches differ from those sent; the device is kept busy before each copy."""
    torch.cuda._sleep(LATE_CYCLES)
    arrived = []
    for batch in arriving:
        arrived.append(batch)
        torch.cuda._sleep(LATE_CYCLES)
    pairs = zip(arrived, sent, strict=True)
    return sum(not torch.equal(got.images.cpu(), batch.images) for got, batch in pairs)


def reused_buffers(batches: list[Batch]) -> Generator[Batch]:
    """Serve batches from page-locked buffers in turn, as FFCV does."""
    ring = [torch.empty_like(batches[0].images).pin_memory() for _ in range(BUFFERS)]
    for number, batch in enumerate(batches):
        buffer = ring[number % BUFFERS]
        buffer.copy_(batch.images)
        yield Batch(buffer, batch.labels, batch.indices, batch.epoch)
