"""What the workers of a group say to each other; a process outside a group is a group of one."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(item: T, workers: dist.ProcessGroup | None = None) -> list[T]:
    """Items of all workers in rank order, on every worker; by way of the group `workers`."""
    if not dist.is_initialized():
        return [item]
    items: list[T | None] = [None] * world_size()
    dist.all_gather_object(items, item, group=workers)
    return items  # type: ignore[return-value]


def new_group() -> dist.ProcessGroup | None:
    """Another group of the same workers, on the CPU, for messages from another thread."""
    if not dist.is_initialized():
        return None
    workers = dist.new_group(backend="gloo")
    assert isinstance(workers, dist.ProcessGroup)
    return workers


def from_first(item: T) -> T:
    """Rank 0's item on every worker."""
    if not dist.is_initialized():
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]
