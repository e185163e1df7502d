"""Batches reach a device whole, however late it copies; the CPU shares their tensors."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest
import torch

from convnextv2.tasks import batch as module
from convnextv2.tasks.batch import Batch, on_device

BATCHES, BUFFERS = 9, 2
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


class LateGPU:
    """Stands in for `torch.cuda`: a stream copies when an event of it is waited for, not before."""

    def __init__(self) -> None:
        self.copies: list[Callable[[], object]] = []
        self.recorded: list[str] = []

    def Stream(self, device: torch.device) -> str:
        return f"side stream of {device}"

    def current_stream(self, device: torch.device) -> str:
        return f"current stream of {device}"

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        assert stream == f"side stream of {GPU}"
        yield

    def Event(self) -> "LateGPU":
        return self

    def record(self, stream: str) -> None:
        assert stream == f"side stream of {GPU}"

    def synchronize(self) -> None:
        while self.copies:
            self.copies.pop(0)()


class HostBatch(Batch):
    """A batch in a loader's buffer, whose copy the GPU makes late."""

    gpu: LateGPU

    def to(self, device: torch.device) -> Batch:
        target = torch.full_like(self.images, -1)
        self.gpu.copies.append(lambda: target.copy_(self.images))
        arriving = DeviceBatch(target, self.labels, self.indices, self.epoch)
        arriving.__dict__["gpu"] = self.gpu
        return arriving


class DeviceBatch(HostBatch):
    def record_stream(self, stream: object) -> None:
        self.gpu.recorded.append(str(stream))


class Loader:
    """Serves batches n = 0, 1, ... full of n from buffers that it uses again."""

    def __init__(self, gpu: LateGPU) -> None:
        self.gpu, self.asked, self.closed, self.busy_at_the_end = gpu, 0, False, False

    def batches(self) -> Generator[Batch]:
        ring = [torch.empty(2, 3) for _ in range(BUFFERS)]
        try:
            for number in range(BATCHES):
                self.asked += 1
                buffer = ring[number % BUFFERS].fill_(number)
                batch = HostBatch(buffer, torch.tensor([number]), torch.tensor([number]), 0)
                batch.__dict__["gpu"] = self.gpu
                yield batch
        finally:
            self.closed, self.busy_at_the_end = True, bool(self.gpu.copies)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> LateGPU:
    late = LateGPU()
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(module.torch.cuda, name, getattr(late, name))
    return late


def test_plain_copies_that_are_late_find_other_pixels(gpu: LateGPU) -> None:
    """The device above is late enough for the fault that `on_device` is there for."""
    arrived = [batch.to(GPU) for batch in Loader(gpu).batches()]
    gpu.synchronize()
    wrong = [n for n, batch in enumerate(arrived) if not bool((batch.images == n).all())]
    assert wrong == list(range(BATCHES - BUFFERS))


def test_late_copies_find_their_own_pixels(gpu: LateGPU) -> None:
    arrived = list(on_device(Loader(gpu).batches(), GPU))
    assert [batch.labels.item() for batch in arrived] == list(range(BATCHES))
    for number, batch in enumerate(arrived):
        assert bool((batch.images == number).all()), number


def test_a_batch_is_whole_when_it_is_served_and_kept_for_those_who_compute_with_it(
    gpu: LateGPU,
) -> None:
    for number, batch in enumerate(on_device(Loader(gpu).batches(), GPU)):
        assert bool((batch.images == number).all())
        assert gpu.recorded == [f"current stream of {GPU}"] * (number + 1)


def test_one_batch_is_copied_ahead_and_no_more(gpu: LateGPU) -> None:
    loader = Loader(gpu)
    for number, _ in enumerate(on_device(loader.batches(), GPU)):
        assert loader.asked == min(number + 2, BATCHES)


def test_leaving_early_closes_the_loader_with_no_copy_under_way(gpu: LateGPU) -> None:
    loader = Loader(gpu)
    moving = on_device(loader.batches(), GPU)
    next(moving)
    assert gpu.copies, "the second batch is on its way"
    moving.close()
    assert loader.closed
    assert not loader.busy_at_the_end


def test_on_a_cpu_tensors_are_shared_and_nothing_is_taken_ahead() -> None:
    taken: list[Batch] = []
    closed = []

    def batches() -> Generator[Batch]:
        try:
            for number in range(3):
                images = torch.full((2, 3), number)
                taken.append(Batch(images, torch.arange(2), torch.arange(2), 0))
                yield taken[-1]
        finally:
            closed.append(True)

    moving = on_device(batches(), CPU)
    for number in range(2):
        assert next(moving) is taken[number]
        assert len(taken) == number + 1
    moving.close()
    assert closed == [True]
