"""Batch arithmetic: global batch = micro batch x accumulation x workers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLayout:
    """A global batch laid out over workers; the three factors multiply exactly."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        per_step = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_step:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide into "
                f"{self.world_size} workers x micro_batch_size {self.micro_batch_size}; "
                f"{_what_would_work(self)}"
            )

    @property
    def accumulation(self) -> int:
        """Micro batches per worker and optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)


def micro_batch_sizes(global_batch_size: int, world_size: int) -> list[int]:
    """Micro batch sizes that fit, largest first; empty when the workers cannot share the batch."""
    per_worker, rest = divmod(global_batch_size, world_size)
    return [] if rest else [size for size in range(per_worker, 0, -1) if per_worker % size == 0]


def group_sizes(global_batch_size: int, micro_batch_size: int, least: int, most: int) -> list[int]:
    """Numbers of workers from `least` to `most` that can share the batch, ascending."""
    return [
        size
        for size in range(least, most + 1)
        if global_batch_size % (micro_batch_size * size) == 0
    ]


def _what_would_work(batch_layout: BatchLayout) -> str:
    sizes = micro_batch_sizes(batch_layout.global_batch_size, batch_layout.world_size)
    if sizes:
        smaller = [size for size in sizes if size <= batch_layout.micro_batch_size][:3]
        return f"micro_batch_size {' or '.join(map(str, smaller))} would work"
    unit = batch_layout.micro_batch_size * batch_layout.world_size
    below = batch_layout.global_batch_size // unit * unit
    values = [str(value) for value in (below, below + unit) if value]
    return f"global_batch_size {' or '.join(values)} would work"
