"""Shares the time of the check among its parts."""

from collections.abc import Sequence

from pipelines.doctor.gpu.parts import Part


def share(left: float, waiting: Sequence[Part]) -> float:
    """Seconds for the first of the parts that still wait, when `left` seconds are left for all.

    It gets as much of them as its weight is of all waiting parts' weights. So a part that uses all
    of its time takes none from later parts, and what a part does not use goes to all later ones.
    """
    return max(0.0, left) * waiting[0].weight / sum(part.weight for part in waiting)
