"""The interval between checkpoints by Young and Daly, on a clock turned by hand."""

import itertools
import math

import pytest

from cluster import group
from cluster.checkpoint.interval import (
    FIRST_STEPS,
    LONGEST_SECONDS,
    PRIOR_FAILURES,
    PRIOR_SECONDS,
    AutoInterval,
    Choice,
    FailureRecord,
)

HOUR = 3600.0


def seconds_lost(interval: float, block: float, until_failure: float) -> float:
    """By checkpoints and by failures, of an hour of training."""
    return HOUR / interval * block + HOUR / until_failure * interval / 2


def choice(
    block: float = 0.2,
    *,
    writing: float = 0.0,
    step: float = 1.0,
    workers: int = 1024,
    record: FailureRecord | None = None,
) -> Choice:
    record = record or FailureRecord()
    return Choice.of(block=block, writing=writing, step=step, workers=workers, record=record)


def test_no_other_interval_loses_less_time() -> None:
    found = choice()
    assert found.steps == round(math.sqrt(2 * 0.2 * found.mean_time_to_failure))
    least = seconds_lost(found.steps, 0.2, found.mean_time_to_failure)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = seconds_lost(factor * found.steps, 0.2, found.mean_time_to_failure)
        assert other > least


def test_the_prior_lies_between_what_is_published() -> None:
    """7.9 h at 1,024 GPUs, and 419 failures in 54 days at 16,384."""
    before = FailureRecord()
    assert 7.9 * HOUR < before.mean_time_to_failure(1024) < 2 * 7.9 * HOUR
    assert 54 * 24 * HOUR / 419 > before.mean_time_to_failure(16_384) > 1800


def test_what_befalls_the_run_outweighs_the_prior() -> None:
    """Eight workers of which one fails every hour."""
    expected = [
        FailureRecord(failures=hours, worker_seconds=8 * hours * HOUR).mean_time_to_failure(8)
        for hours in (0, 1, 10, 100, 1000)
    ]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] == PRIOR_SECONDS / PRIOR_FAILURES / 8
    assert expected[2] < expected[0] / 15
    assert HOUR < expected[-1] < 2 * HOUR
    quiet = FailureRecord(worker_seconds=8 * 1000 * HOUR)
    assert quiet.mean_time_to_failure(8) > expected[0]


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        (choice(workers=1), LONGEST_SECONDS),  # Failures that the prior does not know of.
        (choice(step=30.0, workers=10**6, writing=45.0), 3),  # It has been written before the next.
        (choice(step=1e5), 1),
        (choice(block=0.0), 1),
    ],
)
def test_limits(found: Choice, steps: float) -> None:
    assert found.steps == steps


class Training:
    """Steps of `step` seconds, the first of a minute, and a checkpoint when it is due."""

    def __init__(self, record: FailureRecord | None = None, steps: int | None = None) -> None:
        self.now = 0.0
        self.saved: list[int] = []
        self.chosen: list[Choice] = []
        self.auto = AutoInterval(0, record or FailureRecord(), steps, lambda: self.now)
        self.done = 0

    def train(self, upto: int, step: float = 2.0, block: float = 0.5) -> None:
        while self.done < upto:
            self.done += 1
            self.now += step if self.done > 1 else 60.0
            if self.auto.due(self.done):
                self.now += block
                self.saved.append(self.done)
                chosen = self.auto.saved(self.done, block)
                self.chosen += [] if chosen is None else [chosen]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "world_size", lambda: 1024)


@pytest.mark.usefixtures("workers")
def test_the_first_checkpoint_tells_how_long_one_takes() -> None:
    training = Training()
    training.train(2000)
    [chosen] = training.chosen
    assert chosen.step == pytest.approx(2.0), "without the first step, and without the block"
    assert chosen.block == 0.5
    young = math.sqrt(2 * 0.5 * chosen.mean_time_to_failure)
    assert chosen.steps == round(young / 2)
    assert training.saved[0] == FIRST_STEPS
    between = [after - before for before, after in itertools.pairwise(training.saved)]
    assert set(between) == {chosen.steps}


@pytest.mark.usefixtures("workers")
def test_it_follows_the_run_when_much_has_changed() -> None:
    training = Training()
    training.train(500)
    [before] = training.chosen
    training.train(1000, block=0.6)
    assert training.chosen == [before], "a tenth is not much"
    training.train(2000, step=8.0)
    after = training.chosen[-1]
    assert after.step == pytest.approx(8.0, rel=0.1)
    assert after.steps == training.auto.steps
    assert after.steps < before.steps / 2


@pytest.mark.usefixtures("workers")
def test_a_later_group_goes_on_with_it_and_counts_the_failure() -> None:
    training = Training()
    training.train(2000)
    record = FailureRecord(failures=3, worker_seconds=1024 * training.now)
    again = Training(record, training.auto.steps)
    again.train(2000)
    assert again.saved[0] == training.auto.steps
    assert again.chosen[-1].failures == 3
    assert again.chosen[-1].steps < training.chosen[-1].steps / 2


@pytest.mark.usefixtures("workers")
def test_one_slow_save_changes_nothing() -> None:
    training = Training()
    training.train(1000)
    assert training.auto.steps is not None
    training.train(1000 + training.auto.steps, block=60.0)
    training.train(1500)
    assert len(training.chosen) == 1


@pytest.mark.usefixtures("workers")
def test_others_do_as_rank_0_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their clocks say."""
    first = Training()
    first.train(FIRST_STEPS)
    monkeypatch.setattr(group, "rank", lambda: 1)
    monkeypatch.setattr(group, "broadcast", lambda _: first.chosen[-1])
    other = Training()
    other.train(FIRST_STEPS, step=99.0)
    assert other.chosen == first.chosen
    assert other.auto.steps == first.auto.steps
    assert not other.auto.due(FIRST_STEPS + first.chosen[0].steps - 1)
    assert other.auto.due(FIRST_STEPS + first.chosen[0].steps)
