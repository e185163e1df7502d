"""When checkpoints are due, and what earlier groups of workers tell of failures."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from cluster.checkpoint.interval import FIRST_STEPS, Choice
from pipelines.presets import load_preset
from pipelines.runtime.events import End, Event, Interval, Point, Start, event_of, line_of
from pipelines.training.checkpoints import Checkpoints, record_of, values_of
from pipelines.training.job import Plan
from tests.pipelines.stages.jobs import made_up_job


def start(time: float, workers: int) -> Start:
    return Start(step=0, time=time, workers=workers, total=100)


def point(time: float) -> Point:
    return Point(step=1, time=time, values={})


def test_failures_are_groups_that_did_not_leave_in_order() -> None:
    log: list[Event] = [
        *(start(0, 4), point(50), point(100)),  # Killed.
        *(start(200, 2), point(250), End(step=9, time=300)),  # Asked to stop.
        start(400, 4),  # Killed at once.
    ]
    record = record_of(log)
    assert (record.failures, record.worker_seconds) == (2, 4 * 100 + 2 * 100)
    assert record_of([]).failures == 0


@pytest.mark.parametrize(
    ("settings", "due"),
    [
        (("checkpoint_every=7 steps",), [7, 14, 21]),
        (("checkpoint_every=auto",), [FIRST_STEPS]),
        (("checkpoint_every=auto", "keep_every=20 steps"), [20, 40, FIRST_STEPS]),
        (("checkpoint_every=auto", "evaluate_every=15 steps"), [FIRST_STEPS]),
        (
            ("checkpoint_every=auto", "evaluate_every=15 steps", "keep_best=val_top1"),
            [15, 30, 45, FIRST_STEPS],
        ),
    ],
)
def test_what_is_to_be_kept_is_saved(
    settings: tuple[str, ...], due: list[int], tmp_path: Path
) -> None:
    config = load_preset("demo", [f"finetune.{each}" for each in settings])
    assert config.finetune is not None
    job = made_up_job(config, config.finetune, tmp_path)
    plan = Plan.of(job.recipe, MagicMock(batches_per_epoch=10))
    checkpoints = Checkpoints(job, plan, MagicMock(), MagicMock(), MagicMock())
    checkpoints.begin(0, [], {})
    found = [step for step in range(1, FIRST_STEPS + 1) if checkpoints.due(step, step)]
    assert found[: len(due)] == due


def test_what_was_chosen_is_said() -> None:
    choice = Choice(
        steps=2880, block=0.213, writing=1.0, step=1.25, mean_time_to_failure=36e6, failures=0
    )
    event = event_of(line_of(Interval(step=500, values=values_of(choice))))
    assert isinstance(event, Interval)
    assert event.in_words() == (
        "from step 500 on, a checkpoint every 2,880 steps (3,600 s): it blocks training for "
        "0.21 s, and a failure is expected every 10,000.0 h (0 so far)"
    )
