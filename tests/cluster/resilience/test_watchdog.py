"""How long a worker may be in a phase before it counts as hung."""

import pytest

from cluster.resilience.watchdog import FACTOR, Limits, overdue
from cluster.workers.messages import Beat, Status

LIMITS = Limits(setup=40.0, step=10.0, evaluation=30.0, checkpoint=20.0)


@pytest.mark.parametrize(
    ("phase", "step", "usual", "limit"),
    [
        ("step", 9, 1.0, 10.0),
        ("data", 9, 1.0, 10.0),
        ("log", 9, 1.0, 10.0),
        ("evaluate", 9, 1.0, 30.0),
        ("checkpoint", 9, 1.0, 20.0),
        ("checkpoint", 9, 8.0, FACTOR * 8.0),
        ("start-up", 9, 1.0, 40.0),
        ("step", 5, 1.0, 40.0),
    ],
)
def test_every_phase_has_its_limit(phase: str, step: int, usual: float, limit: float) -> None:
    def status(seconds: float) -> Status:
        beat = Beat(phase=phase, seconds=seconds, usual=usual, step=step, began=5)
        return Status(generation=1, beat=beat)

    assert not overdue(status(limit), LIMITS)
    assert overdue(status(limit + 0.1), LIMITS)
