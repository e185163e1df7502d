"""Which samples make up which batch: a function of (seed, epoch), the same for every world size.

Global batch k of an epoch holds the samples at positions k*G to (k+1)*G of the epoch's order. Each
worker takes every world-size-th pair of it, or sample if pairs do not divide evenly. Positions 2q
and 2q + 1 stay together, so that an image's mixing partner depends on (seed, epoch, sample) alone.
The position in the data is one integer, the samples consumed. Memory does not grow with an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.order.permutation import permute

Indices = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class GlobalOrder:
    """Shuffles samples anew each epoch.

    Full random, or with `blocks` block-random: blocks (FFCV's pages) are shuffled, and samples are
    shuffled only within windows of `window_blocks` blocks. So whole pages are read, one window at a
    time (128 pages: 1 GiB of page cache), and each page belongs to one window of an epoch.

    The price is that a batch that is no larger than a window comes from one or two windows, hence
    from few blocks, and mixes only what these hold. Of 14.2 million samples, 260 a page, sorted by
    class, a batch of 4,096 has 180 of 21,841 classes; with full random order it has 3,740. Shards
    are therefore written with their classes mixed (docs/data.md). Of a subset, a block has only
    the samples that are in the subset.

    Attributes:
        samples: How many there are, or the numbers (N,) of a subset, ascending with `blocks`.
        global_batch_size: G.
        seed: The same for all epochs.
        drop_last: Leave out the last, partial global batch; else it is served as it is. Samples
            are never repeated to fill it.
        blocks: (blocks + 1,): first sample of every block, and the number of all samples (not of
            the subset) at the end.
        window_blocks: Most blocks of a window; windows differ in size by one block at most.

    Raises:
        ValueError: When an epoch has no batch, or `blocks` do not cover the samples.
    """

    samples: Indices | int
    global_batch_size: int
    seed: int
    drop_last: bool = True
    blocks: Indices | None = None
    window_blocks: int = 128

    def __post_init__(self) -> None:
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{self.count} samples make no global batch of {self.global_batch_size}; at most "
                f"{self.count} would work, or drop_last=False where there are any"
            )
        if self.blocks is not None:
            _check_blocks(self.blocks, self.samples)

    @property
    def count(self) -> int:
        """Samples to choose from."""
        return self.samples if isinstance(self.samples, int) else len(self.samples)

    @property
    def batches_per_epoch(self) -> int:
        full, rest = divmod(self.count, self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def samples_per_epoch(self) -> int:
        """Samples an epoch serves."""
        return min(self.count, self.batches_per_epoch * self.global_batch_size)

    def locate(self, consumed: int) -> tuple[int, int]:
        """Epoch and global batch after `consumed` samples of all workers and epochs.

        What `drop_last` leaves out is not consumed: an epoch has `samples_per_epoch`.

        Raises:
            ValueError: When that is not between two global batches; says which are near.
        """
        epoch, inside = divmod(consumed, self.samples_per_epoch)
        number, rest = divmod(inside, self.global_batch_size)
        if rest:
            below = consumed - rest
            # The last one of an epoch may be short.
            above = min(below + self.global_batch_size, (epoch + 1) * self.samples_per_epoch)
            raise ValueError(
                f"{consumed} samples are inside a global batch of {self.global_batch_size}; "
                f"{below} and {above} are between two"
            )
        return epoch, number

    def batch(self, epoch: int, number: int) -> Indices:
        """Global batch `number` of an epoch: (G,), fewer in a last one that is kept."""
        start = number * self.global_batch_size
        end = min(start + self.global_batch_size, self.samples_per_epoch)
        positions = np.arange(start, end, dtype=np.uint64)
        if self.blocks is None:
            numbers = permute(positions, self.count, self.seed, epoch)
        else:
            numbers = self._windows(epoch).samples_at(positions)
        return numbers if isinstance(self.samples, int) else self.samples[numbers]

    def worker_batches(
        self, epoch: int, *, rank: int, world_size: int, start: int = 0
    ) -> Iterator[Indices]:
        """Worker `rank`'s part of every global batch of an epoch, from number `start` on."""
        for number in range(start, self.batches_per_epoch):
            yield part_of(self.batch(epoch, number), rank, world_size)

    def _windows(self, epoch: int) -> "_Windows":
        # A loader asks for the batches of an epoch one after another.
        windows = self._made.get(epoch)
        if windows is None:
            assert self.blocks is not None
            edges = self.blocks
            if not isinstance(self.samples, int):
                edges = np.searchsorted(self.samples, edges).astype(np.uint64)
            windows = _Windows(edges, self.window_blocks, self.seed, epoch)
            self._made.clear()
            self._made[epoch] = windows
        return windows

    @cached_property
    def _made(self) -> "dict[int, _Windows]":
        return {}


def part_of(batch: Indices, rank: int, world_size: int) -> Indices:
    """A worker's part of a global batch: whole pairs if these divide evenly, else samples."""
    if len(batch) % (2 * world_size) == 0:
        return batch.reshape(-1, 2)[rank::world_size].reshape(-1)
    return batch[rank::world_size]


def _check_blocks(blocks: Indices, samples: Indices | int) -> None:
    """Raise ValueError for blocks that do not cover all samples: some would silently get lost."""
    last = int(blocks[-1])
    if isinstance(samples, int):
        covered, end = last == samples, f"{samples}"
    else:
        if not (samples[1:] > samples[:-1]).all():
            raise ValueError("block-random order needs its samples ascending, each of them once")
        covered, end = last > int(samples[-1]), f"more than {int(samples[-1])}"
    if blocks[0] != 0 or not covered or not (blocks[1:] >= blocks[:-1]).all():
        raise ValueError(
            f"blocks go from sample {blocks[0]} to {last}; they must ascend from 0 to the number "
            f"of all samples, which is {end}"
        )


class _Windows:
    """The block-random order of one epoch; `edges` are the first samples of the blocks."""

    def __init__(self, edges: Indices, window_blocks: int, seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        sizes = np.diff(edges)
        filled = np.flatnonzero(sizes)
        order = filled[permute(np.arange(len(filled), dtype=np.uint64), len(filled), *self.key)]
        self.first = edges[order]
        self.starts = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes[order])])
        # Windows of equal size: a last one of few blocks would make batches of few classes.
        windows = -(-len(order) // window_blocks)
        self.window_starts = self.starts[np.arange(windows + 1) * len(order) // windows]

    def samples_at(self, positions: Indices) -> Indices:
        """The samples at positions of the epoch."""
        windows = np.searchsorted(self.window_starts, positions, side="right") - 1
        mixed = np.empty_like(positions)
        for window in np.unique(windows):
            chosen = windows == window
            start, end = (int(edge) for edge in self.window_starts[window : window + 2])
            inside = positions[chosen] - np.uint64(start)
            mixed[chosen] = np.uint64(start) + permute(
                inside, end - start, *self.key, int(window) + 1
            )
        blocks = np.searchsorted(self.starts, mixed, side="right") - 1
        return self.first[blocks] + mixed - self.starts[blocks]


def few_labels(labels: NDArray[np.int64], samples: Indices, per_class: int, seed: int) -> Indices:
    """Choose `per_class` of `samples` from every class.

    Raises:
        ValueError: When a class has fewer; says which and how many there are.
    """
    chosen = []
    for label in np.unique(labels[samples]):
        members = samples[labels[samples] == label]
        if len(members) < per_class:
            raise ValueError(
                f"labels_per_class {per_class} is more than the {len(members)} images of class "
                f"{label}; {len(members)} would work there"
            )
        rng = np.random.default_rng((seed, int(label)))
        chosen.append(rng.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))
