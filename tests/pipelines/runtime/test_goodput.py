"""Where the time went: made-up histories, whose seconds are known, add up exactly."""

from collections.abc import Sequence

import pytest

from cluster.resilience.incidents import Incident
from pipelines.runtime.drivers import Span
from pipelines.runtime.events import Checkpoint, End, Event, Point, Start
from pipelines.runtime.goodput import Account, account_of, total


def start(step: int, time: float) -> Start:
    return Start(step=step, time=time, workers=2, total=100, seconds={"start-up": 4.0})


def point(step: int, time: float, /, **seconds: float) -> Point:
    return Point(step=step, time=time, values={}, seconds={"start-up": 4.0, **seconds})


def fault(time: float, step: int, cause: str = "killed") -> Incident:
    return Incident(
        id="pretrain-1",
        time=time,
        stage="pretrain",
        generation=1,
        cause=cause,
        rank=1,
        node="",
        host="",
        phase="step",
        step=step,
        error="",
        workers=(2, 2),
    )


def checked(account: Account) -> Account:
    """Every second of a stage and of its groups belongs to one part."""
    assert sum(account.seconds.values()) == account.wall
    for group in account.groups:
        assert sum(group.seconds.values()) == group.ended - group.began
    return account


def done(step: int, time: float, /, **seconds: float) -> End:
    return End(step=step, time=time, seconds={"start-up": 4.0, **seconds})


STRAIGHT: Sequence[Event] = [
    start(0, 110.0),
    point(10, 122.0, step=8.0, data=2.0, log=1.0, other=1.0),
    point(20, 136.0, step=16.0, data=4.0, log=2.0, other=1.0, checkpoint=1.0, evaluate=2.0),
    done(20, 138.0, step=16.0, data=4.0, log=2.0, other=2.0, checkpoint=2.0, evaluate=2.0),
]


def test_a_run_that_nothing_befell() -> None:
    account = checked(account_of("pretrain", STRAIGHT, [Span(100.0, 140.0)]))
    assert account.seconds == {
        "step": 16.0,
        "set-up": 10.0,
        "data": 4.0,
        "evaluate": 2.0,
        "checkpoint": 2.0,
        "other": 6.0,
    }
    assert (account.wall, account.goodput) == (40.0, 0.4)


KILLED: Sequence[Event] = [
    start(0, 110.0),
    point(10, 120.0, step=8.0, data=2.0),
    # One second of it saved step 10; 5 of these 10 steps count if a group goes on from 15.
    point(20, 131.0, step=16.0, data=4.0, checkpoint=1.0),
]


@pytest.mark.parametrize(
    ("again", "lost_steps", "seconds"),
    [
        (0, 25, {"lost": 26.0}),
        (10, 25 - 10, {"step": 8.0, "data": 2.0, "checkpoint": 1.0, "lost": 15.0}),
        (15, 25 - 15, {"step": 12.0, "data": 3.0, "checkpoint": 1.0, "lost": 10.0}),
        (20, 25 - 20, {"step": 16.0, "data": 4.0, "checkpoint": 1.0, "lost": 5.0}),
        # After its last note, steps are taken to have been alike.
        (23, 25 - 23, {"step": 19.0, "data": 4.0, "checkpoint": 1.0, "lost": 2.0}),
        (25, 0, {"step": 21.0, "data": 4.0, "checkpoint": 1.0}),
    ],
)
def test_steps_that_are_done_again_are_lost(
    again: int, lost_steps: int, seconds: dict[str, float]
) -> None:
    events = [*KILLED, start(again, 142.0), done(100, 150.0, step=8.0)]
    account = checked(account_of("pretrain", events, [Span(100.0, 150.0)], [fault(136.0, 25)]))
    first, second = account.groups
    assert first.seconds == {"set-up": 10.0, **seconds}
    assert (first.cause, first.last_step, first.lost_steps) == ("killed", 25, lost_steps)
    assert second.seconds == {"step": 8.0, "restart": 6.0}
    assert (second.began, second.cause, second.lost_steps) == (136.0, "", 0)


def test_nobody_is_idle_but_between_drivers() -> None:
    spans = [Span(100.0, 133.0), Span(183.0, 210.0)]
    events = [*KILLED, start(20, 190.0), done(100, 200.0, step=10.0)]
    account = checked(account_of("pretrain", events, spans))
    assert account.seconds == {
        "step": 16.0 + 10.0,
        "set-up": 10.0,
        "data": 4.0,
        "checkpoint": 1.0,
        "lost": 2.0,  # After the last note; the next group went on from there.
        "restart": 7.0,
        "idle": 50.0,
        "other": 10.0,
    }


def test_a_hang_is_lost_from_when_it_began_and_what_follows_is_restart() -> None:
    events = [*KILLED, start(20, 260.0), done(100, 300.0, step=40.0)]
    account = checked(
        account_of("pretrain", events, [Span(100.0, 300.0)], [fault(132.0, 20, "hang")])
    )
    assert account.groups[1].seconds == {"step": 40.0, "restart": 260.0 - 132.0}
    assert account.groups[0].cause == "hang"


def test_faults_before_a_group_was_ready_are_of_the_restart() -> None:
    events = [*KILLED, start(20, 170.0), done(100, 180.0, step=10.0)]
    faults = [fault(131.0, 20), fault(140.0, -1), fault(150.0, -1)]
    account = checked(account_of("pretrain", events, [Span(100.0, 180.0)], faults))
    assert len(account.groups) == 2
    assert account.seconds["restart"] == 170.0 - 131.0


def test_a_run_that_goes_on_has_lost_nothing_yet() -> None:
    account = checked(account_of("pretrain", KILLED, [Span(100.0, 134.0)]))
    assert account.seconds == {
        "step": 19.0, "set-up": 10.0, "data": 4.0, "checkpoint": 1.0,
    }  # fmt: skip


def test_before_a_group_is_ready_all_is_set_up() -> None:
    account = checked(account_of("pretrain", [], [Span(100.0, 104.0), Span(110.0, 112.0)]))
    assert account.seconds == {"set-up": 6.0, "idle": 6.0}
    assert account.goodput == 0.0
    assert account_of("pretrain", [], []).wall == 0.0


def test_checkpoints_tell_the_time_after_the_last_point() -> None:
    saved = Checkpoint(
        step=10, time=132.0, bytes=1, written_seconds=1.0,
        seconds={"start-up": 4.0, "step": 16.0, "data": 4.0, "checkpoint": 2.0},
    )  # fmt: skip
    account = checked(account_of("pretrain", [*KILLED, saved], [Span(100.0, 132.0)]))
    assert (account.seconds["checkpoint"], account.seconds["step"]) == (2.0, 16.0)


def test_several_stages_are_added_up() -> None:
    one = account_of("pretrain", STRAIGHT, [Span(100.0, 140.0)])
    both = checked(total([one, one]))
    assert both.wall == 80.0
    assert both.goodput == one.goodput
    assert both.seconds["data"] == 8.0
