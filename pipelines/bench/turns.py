"""Measures contenders in turns, so that changes in the machine's speed affect all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Measured = TypeVar("Measured")


def take_turns(
    contenders: Mapping[str, Callable[[], Measured]], turns: int, warm_up: int = 0
) -> dict[str, list[Measured]]:
    """One measurement of each contender per round, after `warm_up` rounds that are discarded."""
    table: dict[str, list[Measured]] = {name: [] for name in contenders}
    for turn in range(warm_up + turns):
        for name, measure in contenders.items():
            measured = measure()
            if turn >= warm_up:
                table[name].append(measured)
    return table


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratio of ours to theirs in each turn."""
    return statistics.median(own / other for own, other in zip(ours, theirs, strict=True))
