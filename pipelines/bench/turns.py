"""Taking turns: a machine whose speed drifts treats all contenders alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Measured = TypeVar("Measured")


def take_turns(
    contenders: Mapping[str, Callable[[], Measured]], turns: int, warm_up: int = 0
) -> dict[str, list[Measured]]:
    """What each measures in every one of `turns` rounds; `warm_up` rounds before do not count."""
    table: dict[str, list[Measured]] = {name: [] for name in contenders}
    for turn in range(warm_up + turns):
        for name, measure in contenders.items():
            measured = measure()
            if turn >= warm_up:
                table[name].append(measured)
    return table


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of ours to theirs, turn by turn."""
    return statistics.median(own / other for own, other in zip(ours, theirs, strict=True))
