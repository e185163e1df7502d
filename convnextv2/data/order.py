"""Which samples make up which batch: a function of (seed, epoch), the same for every world size.

Global batch k of an epoch holds the samples at positions k*G to (k+1)*G of the epoch's order. A
worker takes its stride of it, in pairs where that comes out even: positions 2q and 2q + 1 stay
together, so that images can be mixed with a partner that depends on (seed, epoch, sample) alone.
The position in the data is one integer, the samples consumed. Nothing of an epoch's length is made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.permutation import permute

Indices = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class GlobalOrder:
    """Shuffles samples anew each epoch.

    Full random, or with `blocks` block-random: blocks (FFCV's pages) are shuffled, and samples only
    among the `window_blocks` blocks of a window. Reads then go through whole pages, a window at a
    time (128 pages: 1 GiB of page cache). The price: a batch comes from one window, or two, and a
    sample is at most two windows away from its block's place. Shards are written with their classes
    mixed, so that a window is a sample of the whole set (docs/data.md).

    Attributes:
        samples: How many there are, or which (ascending, a subset).
        global_batch_size: G.
        seed: Of all epochs.
        drop_last: Leave out the last, partial global batch; else it is served as it is. Samples
            are never repeated to fill it.
        blocks: First sample of every block, and the number of all samples at the end.
        window_blocks: Blocks of a window.
    """

    samples: Indices | int
    global_batch_size: int
    seed: int
    drop_last: bool = True
    blocks: Indices | None = None
    window_blocks: int = 128

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
        """Epoch and global batch after `consumed` samples.

        Raises:
            ValueError: When that is not between two global batches; says which are near.
        """
        epoch, inside = divmod(consumed, self.samples_per_epoch)
        number, rest = divmod(inside, self.global_batch_size)
        if rest:
            below = consumed - rest
            raise ValueError(
                f"{consumed} samples are inside a global batch of {self.global_batch_size}; "
                f"{below} and {below + self.global_batch_size} are between two"
            )
        return epoch, number

    def batch(self, epoch: int, number: int) -> Indices:
        """Global batch `number` of an epoch: (G,), fewer in a last one that is kept."""
        start = number * self.global_batch_size
        end = min(start + self.global_batch_size, self.samples_per_epoch)
        positions = np.arange(start, end, dtype=np.uint64)
        if self.blocks is None:
            places = permute(positions, self.count, self.seed, epoch)
        else:
            places = self._windows(epoch).places(positions)
        return places if isinstance(self.samples, int) else self.samples[places]

    def share(self, epoch: int, *, rank: int, world_size: int, start: int = 0) -> Iterator[Indices]:
        """Worker `rank`'s part of every global batch of an epoch, from number `start` on."""
        for number in range(start, self.batches_per_epoch):
            yield part_of(self.batch(epoch, number), rank, world_size)

    def _windows(self, epoch: int) -> "_Windows":
        # A loader asks for the batches of an epoch one after another.
        if self._made.get(epoch) is None:
            assert self.blocks is not None
            edges = self.blocks
            if not isinstance(self.samples, int):
                edges = np.searchsorted(self.samples, edges).astype(np.uint64)
            self._made.clear()
            self._made[epoch] = _Windows(edges, self.window_blocks, self.seed, epoch)
        return self._made[epoch]

    @cached_property
    def _made(self) -> "dict[int, _Windows]":
        return {}


def part_of(batch: Indices, rank: int, world_size: int) -> Indices:
    """A worker's part of a global batch: pairs where every worker gets as many, else samples."""
    if len(batch) % (2 * world_size) == 0:
        return batch.reshape(-1, 2)[rank::world_size].reshape(-1)
    return batch[rank::world_size]


class _Windows:
    """The block-random order of one epoch; `edges` are the first samples of the blocks."""

    def __init__(self, edges: Indices, window_blocks: int, seed: int, epoch: int) -> None:
        self.key = (seed, epoch)
        sizes = np.diff(edges)
        filled = np.flatnonzero(sizes)
        order = filled[permute(np.arange(len(filled), dtype=np.uint64), len(filled), *self.key)]
        self.first = edges[order]
        self.starts = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes[order])])
        self.window_starts = self.starts[:-1:window_blocks]
        self.window_starts = np.append(self.window_starts, self.starts[-1])

    def places(self, positions: Indices) -> Indices:
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
