"""Which samples make up which batch: a function of (seed, epoch), the same for every world size.

Global batch k of an epoch is `permutation[k*G : (k+1)*G]`; worker r of W takes every W-th sample
of it, starting at r. The position in the data is one integer, the global batches consumed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.uint64]


@dataclass(frozen=True)
class GlobalOrder:
    """Shuffles `samples` anew each epoch; the last partial global batch is dropped."""

    samples: Indices
    global_batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        return len(self.samples) // self.global_batch_size

    def epoch(self, epoch: int) -> Indices:
        """All global batches of an epoch: (batches_per_epoch, global_batch_size)."""
        permuted = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        kept = permuted[: self.batches_per_epoch * self.global_batch_size]
        return kept.reshape(-1, self.global_batch_size)

    def share(self, epoch: int, *, rank: int, world_size: int, start: int = 0) -> Indices:
        """Samples of worker `rank` from global batch `start` on, in the order it sees them."""
        return self.epoch(epoch)[start:, rank::world_size].reshape(-1)


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
