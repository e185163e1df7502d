"""Checks that all workers still hold the same weights, and finds the worker that does not.

A flipped bit, a defective core or a corrupted message raises no error. Every worker sums the bits
of the weights it holds unsharded, as integers; a single flipped bit changes the sum.
"""

from collections import Counter
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import group
from cluster.workers.current import Diverged

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(weights: Iterable[Tensor]) -> Tensor:
    """The sum of all elements' bits, modulo 2^64: () int64 on the device of the weights."""
    sums = [
        weight.detach().view(_INTEGERS[weight.element_size()]).sum(dtype=torch.int64)
        for weight in weights
    ]
    return torch.stack(sums).sum()


def check_replicas(weights: Iterable[Tensor], step: int) -> None:
    """Compare weights that should be the same on all workers; collective, one small message.

    Raises:
        Diverged: On every worker, naming those whose weights differ from the majority's.
    """
    own = checksum(weights)
    sums = [torch.empty_like(own) for _ in range(group.world_size())]
    dist.all_gather(sums, own)
    found = torch.stack(sums).tolist()
    if len(set(found)) == 1:
        return
    (usual, count), *_ = Counter(found).most_common()
    if 2 * count <= len(found):
        listed = ", ".join(f"{rank}: {value:016x}" for rank, value in enumerate(_unsigned(found)))
        raise Diverged(
            f"after step {step} the workers' weights are not the same, and no more than half of "
            f"them agree (checksums {listed})",
            to_blame=False,
        )
    ranks = [rank for rank, value in enumerate(found) if value != usual]
    raise Diverged(
        f"after step {step} the weights of worker{'s' * (len(ranks) > 1)} "
        f"{', '.join(map(str, ranks))} are not those of the other {count}: memory or a device "
        "there is faulty",
        to_blame=group.rank() in ranks,
    )


def _unsigned(values: Iterable[int]) -> list[int]:
    return [value % 2**64 for value in values]
