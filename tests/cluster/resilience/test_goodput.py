"""The stopwatch counts every second once, on a clock that the test advances."""

from contextlib import suppress
from types import SimpleNamespace

import pytest

from cluster.resilience import goodput
from cluster.resilience.goodput import OTHER, Stopwatch


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(goodput, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_a_phase_inside_a_phase_pauses_the_outer_one(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 1
    with watch.phase("step"):
        clock.now += 2
        with watch.phase("data"):
            clock.now += 4
        clock.now += 8
    clock.now += 16
    assert watch.seconds == {OTHER: 17, "step": 10, "data": 4}


def test_phases_sum_to_wall_time(clock: Clock) -> None:
    watch, begin = Stopwatch(), clock.now
    for turn in range(5):
        with watch.phase("a"):
            clock.now += turn
            with watch.phase("b"), watch.phase("a"):
                clock.now += 0.5
        clock.now += 0.25
        assert sum(watch.seconds.values()) == clock.now - begin
    assert watch.seconds["a"] == 0 + 1 + 2 + 3 + 4 + 5 * 0.5


def test_reading_in_the_middle_of_a_phase_includes_it(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.phase("checkpoint"):
        clock.now += 3
        assert watch.seconds["checkpoint"] == 3
        clock.now += 1
    assert watch.seconds["checkpoint"] == 4


def test_an_error_ends_its_phase(clock: Clock) -> None:
    watch = Stopwatch()
    with suppress(KeyError), watch.phase("step"), watch.phase("data"):
        clock.now += 1
        raise KeyError
    clock.now += 5
    assert watch.seconds == {OTHER: 5, "step": 0, "data": 1}


def test_what_was_read_does_not_change_later(clock: Clock) -> None:
    watch = Stopwatch()
    before = watch.seconds
    clock.now += 1
    assert watch.seconds == {OTHER: 1}
    assert before == {OTHER: 0}
