"""Parameters cut into fragments in many ways, for tests of what is done with fragments."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cluster.checkpoint.fragment_files import StateFiles, file_name, write_fragments
from cluster.checkpoint.fragments import EMA_WEIGHT, MOMENTS, WEIGHT, StateFragment
from cluster.checkpoint.store import Checkpoint, CheckpointError, latest_good, verify

# No two of a length; a scalar, and one that is not trained.
SHAPES: dict[str, tuple[int, ...]] = {
    "stem.weight": (4, 3, 2, 2),
    "stem.bias": (4,),
    "gamma": (1, 1, 1, 3),
    "scale": (),
    "frozen": (5, 2),
    "head.weight": (7, 4),
}
KINDS = (WEIGHT, *MOMENTS, EMA_WEIGHT)
States = dict[str, dict[str, Tensor]]


def make_states(seed: int = 0, names: Iterable[str] = SHAPES) -> States:
    """Flattened tensors of every kind, by name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            kind: torch.randn(torch.Size(SHAPES[name]).numel(), generator=generator)
            for kind in (KINDS if name != "frozen" else KINDS[:1])
        }
        for name in names
    }


def replicated(states: States) -> list[StateFragment]:
    """As stage 0 keeps them: whole, on every worker."""
    return [
        StateFragment(name, SHAPES[name], 0, dict(tensors), replicated=True)
        for name, tensors in states.items()
    ]


def cut(states: States, cuts: Sequence[int]) -> list[list[StateFragment]]:
    """As stages 1 and 2 keep them: all parameters end to end, cut at `cuts`; by worker."""
    total = sum(tensors[WEIGHT].numel() for tensors in states.values())
    workers = []
    for first, last in zip([0, *cuts], [*cuts, total], strict=True):
        fragments, offset = [], 0
        for name, tensors in states.items():
            numel = tensors[WEIGHT].numel()
            begin, end = (min(max(place - offset, 0), numel) for place in (first, last))
            if begin < end:
                mine = {kind: tensor[begin:end] for kind, tensor in tensors.items()}
                fragments.append(StateFragment(name, SHAPES[name], begin, mine))
            offset += numel
        workers.append(fragments)
    return workers


def scattered(states: States, size: int) -> list[list[StateFragment]]:
    """As stage 3 keeps them: an equal part of every parameter, the last ones perhaps empty."""
    workers: list[list[StateFragment]] = [[] for _ in range(size)]
    for name, tensors in states.items():
        numel = tensors[WEIGHT].numel()
        part = -(-numel // size)
        for rank, fragments in enumerate(workers):
            begin, end = (min(part * number, numel) for number in (rank, rank + 1))
            mine = {kind: tensor[begin:end] for kind, tensor in tensors.items()}
            fragments.append(StateFragment(name, SHAPES[name], begin, mine))
    return workers


def write_all(directory: Path, workers: Sequence[Sequence[StateFragment]]) -> StateFiles:
    """Write every worker's file; the files, opened."""
    directory.mkdir(parents=True, exist_ok=True)
    for rank, fragments in enumerate(workers):
        write_fragments(directory / file_name(rank), fragments)
    return StateFiles(directory)


def holds(directory: Path, states: States) -> bool:
    """Whether the files in a folder hold just these states, bit for bit."""
    files = StateFiles(directory)
    return files.shapes == {name: SHAPES[name] for name in states} and all(
        files.kinds[name] == tensors.keys()
        and all(
            torch.equal(files.whole(kind, name), tensor.view(SHAPES[name]))
            for kind, tensor in tensors.items()
        )
        for name, tensors in states.items()
    )


def last_good(root: Path) -> Checkpoint:
    """The last good checkpoint of a folder in which nothing is to be rejected."""
    search = latest_good(root)
    assert search.rejected == []
    assert search.found is not None
    return search.found


def is_good(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written."""
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
