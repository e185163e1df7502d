"""Copies of fragments in the host's memory: what they hold, and when and how memory is taken."""

import gc
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cluster.checkpoint import host_copy
from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.fragments import WEIGHT, StateFragment
from cluster.checkpoint.host_copy import ALIGNMENT, HostCopy, HostMemory, on_host
from cluster.checkpoint.retention import KeepPolicy
from tests.cluster.checkpoint.fragments import SHAPES, holds, last_good, make_states, replicated


def test_a_copy_does_not_change_with_what_was_copied() -> None:
    fragments = replicated(make_states())
    copies = HostCopy().take(fragments)
    for original in fragments:
        for tensor in original.tensors.values():
            tensor.zero_()
    expected = make_states()
    assert [copy.name for copy in copies] == list(SHAPES)
    for copy in copies:
        assert copy.tensors.keys() == expected[copy.name].keys()
        assert (copy.shape, copy.start, copy.replicated) == (SHAPES[copy.name], 0, True)
        assert all(torch.equal(copy.tensors[k], v) for k, v in expected[copy.name].items())


def test_memory_for_copies_is_taken_once() -> None:
    host, fragments = HostCopy(), replicated(make_states())

    def places() -> list[int]:
        return [t.data_ptr() for copy in host.take(fragments) for t in copy.tensors.values()]

    first = places()
    fragments[0].tensors[WEIGHT].fill_(3)
    assert places() == first
    assert host.take(fragments)[0].tensors[WEIGHT].unique().tolist() == [3]


def test_another_length_is_copied_whole() -> None:
    host = HostCopy()
    host.take([StateFragment("x", (5,), 0, {WEIGHT: torch.zeros(5)})])
    (copy,) = host.take([StateFragment("x", (5,), 2, {WEIGHT: torch.ones(1)})])
    assert copy.tensors[WEIGHT].tolist() == [1], "and not spread over the old buffer"


def test_pieces_in_memory_are_on_the_host() -> None:
    assert on_host(replicated(make_states()))
    assert on_host([])


class FakeRuntime:
    """CUDA's registry of page-locked memory: (address, bytes) of what is registered now."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.locked: list[tuple[int, int]] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if not self.status:
            self.locked.append((address, size))
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        (found,) = [each for each in self.locked if each[0] == address]
        self.locked.remove(found)
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: fake)
    return fake


def rounded_up(fragments: Sequence[StateFragment]) -> int:
    sizes = [tensor.nbytes for each in fragments for tensor in each.tensors.values()]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fragments seem to be on a GPU, whose stream notes that it was waited for."""
    waited: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            waited.append("synchronize")

    monkeypatch.setattr(host_copy, "on_host", lambda fragments: False)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    return waited


def test_copies_of_what_a_gpu_holds_are_page_locked_by_the_byte(
    runtime: FakeRuntime, waits: list[str]
) -> None:
    host, fragments = HostCopy(), replicated(make_states())
    host.allocate(fragments)
    ((address, size),) = runtime.locked
    assert size == rounded_up(fragments)
    assert waits == []
    for copy in host.take(fragments):
        for tensor in copy.tensors.values():
            assert address <= tensor.data_ptr() <= address + size - tensor.nbytes
            assert tensor.data_ptr() % ALIGNMENT == 0
    assert waits == ["synchronize"], "what comes back has arrived"
    assert runtime.locked == [(address, size)], "no more of it for a save"


def test_a_device_forgets_memory_that_is_given_back(runtime: FakeRuntime, waits: list[str]) -> None:
    host, fragments = HostCopy(), replicated(make_states())
    (first, *_) = host.take(fragments)
    host.allocate(fragments[:1])
    ((_, size),) = runtime.locked
    assert size == rounded_up(fragments[:1])
    assert torch.equal(first.tensors[WEIGHT], fragments[0].tensors[WEIGHT]), "still readable"
    del host
    gc.collect()
    assert runtime.locked == []


def test_memory_that_cannot_be_page_locked_is_an_error(runtime: FakeRuntime) -> None:
    runtime.status = 2
    with pytest.raises(MemoryError, match=r"128 MB .*cannot be page-locked.*CUDA error 2.*memory"):
        HostMemory(128_000_000, page_locked=True)


@pytest.mark.parametrize("size", [0, 1, 4097])
def test_memory_of_the_host_alone_needs_no_device(size: int, runtime: FakeRuntime) -> None:
    memory = HostMemory(size, page_locked=False)
    assert memory.content.tolist() == [0] * size
    assert runtime.locked == []


def test_a_saver_takes_its_memory_before_the_first_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    class Noted(HostMemory):
        def __init__(self, size: int, *, page_locked: bool) -> None:
            taken.append(size)
            super().__init__(size, page_locked=page_locked)

    monkeypatch.setattr(host_copy, "HostMemory", Noted)
    saver, fragments = Saver(tmp_path, KeepPolicy()), replicated(make_states())
    saver.prepare(fragments)
    assert taken == [rounded_up(fragments)]
    for step in (1, 2):
        saver.save(step, fragments, {})
    saver.wait()
    assert len(taken) == 1
    assert holds(last_good(tmp_path).path, make_states())
    Saver(tmp_path, KeepPolicy(), asynchronous=False).prepare(fragments)
    assert len(taken) == 1, "nothing is copied, so nothing is taken"
