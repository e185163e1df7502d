"""CUDA graphs without a GPU: PyTorch's operations are recorded, and replayed in the same memory.

As with real ones, a replay reads what was an input where it lay, writes where the recording wrote,
runs no line of Python, and knows nothing of what has been put elsewhere since.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeGraph:
    """Stands for `torch.cuda.CUDAGraph`; `calls` notes what was done with all of them."""

    calls: ClassVar[list[str]] = []
    replaying: ClassVar[bool] = False

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        self.calls.append("replay")
        FakeGraph.replaying = True
        with torch.no_grad():
            for operation, arguments, named, results in self.operations:
                again = tree_leaves(operation(*arguments, **named))
                for old, new in zip(tree_leaves(results), again, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
        FakeGraph.replaying = False


class Launches(TorchDispatchMode):
    """Counts operations, by name, that a GPU would compute: all but views and allocations.

    Attributes:
        inside: Those of replays, which a GPU would start by two launches.
        outside: All others.
    """

    ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

    def __init__(self) -> None:
        super().__init__()
        self.inside: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        if not operation.is_view and name not in self.ALLOCATIONS:
            (self.inside if FakeGraph.replaying else self.outside)[name] += 1
        return operation(*arguments, **(named or {}))


class Recorder(TorchDispatchMode):
    """Notes every operation with the very tensors it read and made."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        results = operation(*arguments, **(named or {}))
        self.graph.operations.append((operation, arguments, named or {}, results))
        return results


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None:
        pass


@contextmanager
def _record(graph: FakeGraph, *, pool: str, capture_error_mode: str) -> Iterator[None]:
    assert (pool, capture_error_mode) == ("the pool", "thread_local")
    FakeGraph.calls.append("record")
    with Recorder(graph):
        yield


@contextmanager
def _on(stream: FakeStream) -> Iterator[None]:
    yield


def install(patch: pytest.MonkeyPatch) -> None:
    """Have `torch.cuda` record on the CPU."""
    fakes: dict[str, Callable[..., Any]] = {
        "CUDAGraph": FakeGraph,
        "graph": _record,
        "graph_pool_handle": lambda: "the pool",
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": _on,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr(FakeGraph, "calls", [])
