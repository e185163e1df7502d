"""Collectives on Python objects and scalars; a process outside a group is a group of one.

PyTorch is imported inside a group only: a look at a checkpoint must not wait for it.
"""

import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    if not _in_group():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    if not _in_group():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def all_gather(item: T, workers: "dist.ProcessGroup | None" = None) -> list[T]:
    """Items of all workers in rank order, on every worker; by way of the group `workers`."""
    if not _in_group():
        return [item]
    import torch.distributed as dist

    items: list[T | None] = [None] * world_size()
    dist.all_gather_object(items, item, group=workers)
    return items  # type: ignore[return-value]


def new_group() -> "dist.ProcessGroup | None":
    """Another group of the same workers, on the CPU, for messages from another thread."""
    if not _in_group():
        return None
    import torch.distributed as dist

    workers = dist.new_group(backend="gloo")
    assert isinstance(workers, dist.ProcessGroup)
    return workers


def broadcast(item: T) -> T:
    """Rank 0's item on every worker."""
    if not _in_group():
        return item
    import torch.distributed as dist

    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean_and_each(metrics: "dict[str, Tensor]", own: float) -> tuple[dict[str, float], list[float]]:
    """Average scalars over all workers, and learn every worker's `own` number (fp32), by rank.

    It is one all-reduce: in the place of its rank a worker adds its number to the others' zeros.
    """
    import torch
    import torch.distributed as dist

    names = sorted(metrics)
    stacked = torch.stack([metrics[name].float() for name in names])
    each = stacked.new_zeros(world_size())
    each[rank()] = own
    sums = torch.cat([stacked, each])
    if world_size() > 1:
        dist.all_reduce(sums)
    sums[: len(names)] /= world_size()
    values = sums.tolist()
    return dict(zip(names, values, strict=False)), values[len(names) :]


def _in_group() -> bool:
    # A process that has joined a group has imported it.
    loaded = sys.modules.get("torch.distributed")
    return loaded is not None and bool(loaded.is_initialized())
