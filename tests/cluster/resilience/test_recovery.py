"""When a recovery is over, and what its record says."""

import pytest

from cluster.resilience.faults import Fault
from cluster.resilience.recovery import Recovery
from cluster.workers.messages import Beat, Ended, Status

FAULT = Fault(
    cause="killed", rank=1, node="n", host="h", phase="step", step=12, error="gone", ago=0.5
)
DONE = Ended(how="done")
STEPPED = {"process group": 1.0, "weights": 3.0, "first step": 4.0}


def status(milestones: dict[str, float], ended: Ended | None = None) -> Status:
    return Status(generation=2, beat=Beat(began=10), ended=ended, milestones=milestones)


@pytest.mark.parametrize(
    ("statuses", "over"),
    [
        ([status(STEPPED), status(STEPPED)], True),
        ([status(STEPPED), status({"weights": 3.0})], False),
        ([status(STEPPED), status({}, DONE)], True),
        ([status({}, DONE), status({}, DONE)], True),
        ([status({}, DONE), status({}, Ended(how="raised"))], False),
    ],
)
def test_it_is_over_when_all_have_done_a_step_or_their_work(
    statuses: list[Status], over: bool
) -> None:
    before = [Status(generation=1, beat=Beat(step=step)) for step in (12, 13)]
    recovery = Recovery.of(FAULT, "pretrain", 1, before, None)
    recovery.taken_down()
    recovery.assembled(2)
    assert recovery.over(statuses) is over
    incident = recovery.incident
    assert incident.recovered is over
    if over:
        assert incident.lost_steps == 3
        assert incident.downtime == pytest.approx(sum(incident.seconds.values()))
        assert set(incident.seconds) >= {"detection", "teardown", "placement", "first step"}
        assert ("weights" in incident.seconds) is any(each.milestones for each in statuses)
