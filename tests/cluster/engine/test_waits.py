"""Where a step has the host wait for the device, in every stage: in DeepSpeed alone, where it does.

DeepSpeed is told that its device is not synchronous with the host, as a GPU is not, and every wait
that it asks for is noted; so is every value that is read from a tensor to decide something.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.engine.outcome import Outcome
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from tests.cluster.engine.toy import go_on, micro_batches, new_engine, rate
from tests.cluster.process_group import run_group

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
RUNS: list[tuple[int, Precision, bool | None]] = [
    (0, "fp32", None),
    *((stage, precision, None) for stage in (1, 2, 3) for precision in ("fp32", "bf16")),
    *((stage, "bf16", True) for stage in (1, 2)),
]  # fmt: skip
"""Stage, precision, `overlap_comm`; stage 0 in bf16 is refused on GPUs."""


class Reads(TorchDispatchMode):
    """Notes what is read from tensors."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found, self.on_host = found, False

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        if name in READS and not self.on_host:
            self.found[name] += 1
        return operation(*arguments, **(named or {}))


class FakeStream:
    """A stream, or an event that has already happened; notes when the host waits for it."""

    found: ClassVar[Counter[str]] = Counter()

    def synchronize(self) -> None:
        self.found["stream"] += 1

    def query(self) -> bool:
        return True

    def record(self, stream: Any = None) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass


@contextmanager
def asynchronous_device(found: Counter[str]) -> Iterator[None]:
    """Have DeepSpeed believe that its device computes behind the host."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeStream, "found", found)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(accelerator, "is_synchronized_device", lambda: False, raising=True)
        patch.setattr(
            accelerator, "synchronize", lambda *device: found.update(device=1), raising=True
        )
        stream = FakeStream()
        patch.setattr(type(accelerator), "Stream", FakeStream)
        patch.setattr(type(accelerator), "Event", FakeStream)
        patch.setattr(accelerator, "stream", lambda stream: nullcontext())
        patch.setattr(accelerator, "current_stream", lambda *device: stream)
        patch.setattr(accelerator, "default_stream", lambda *device: stream)
        yield


@contextmanager
def reads(found: Counter[str]) -> Iterator[None]:
    """Note reads, but those of an outcome, whose copy is on the host by then."""
    with Reads(found) as noted, pytest.MonkeyPatch.context() as patch:
        for name in ("left_out", "stops", "mean_loss"):
            real = getattr(Outcome, name)

            def read(outcome: Outcome, real: Any = real) -> bool | float:
                noted.on_host = True
                try:
                    answer: bool | float = real(outcome)
                finally:
                    noted.on_host = False
                return answer

            patch.setattr(Outcome, name, read)
        yield


def waits(stage: int, precision: Precision, overlap: bool | None) -> dict[str, int]:
    """Of a clipped step of two micro batches, with a moving average."""
    found = Counter[str]()
    zero = ZeroSettings.model_validate({"stage": stage, "overlap_comm": overlap})
    settings = EngineSettings(zero=zero, precision=precision, grad_clip=0.6, ema_decay=0.9)
    with asynchronous_device(found):
        engine = new_engine(settings, micro=2)
        go_on(engine, 0, 2, micro=2)
        found.clear()
        batches = list(micro_batches(2, micro=2))
        with reads(found):
            engine.train_step(batches, rate(2))
    return dict(found)


def laboratory(folder: Path) -> None:
    torch.save({run: waits(*run) for run in RUNS}, folder / f"found-{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("waits")
    run_group(laboratory, 2, folder, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_step_waits_where_deepspeed_does_and_nowhere_else(
    found: list[dict[Any, dict[str, int]]], run: tuple[Any, ...]
) -> None:
    stage, _, overlap = run
    expected: dict[str, int] = {}
    if stage == 3:
        # For the reductions of each micro batch, and once for the parameters that stay whole. What
        # is read is on the host: the zero that stands for the norm DeepSpeed would compute.
        expected = {"stream": 2, "device": 1, "_local_scalar_dense": 1}
    if overlap:
        expected = {"device": 2}  # Before each bucket on the stream of its own.
    assert [worker[run] for worker in found] == [expected] * 2
