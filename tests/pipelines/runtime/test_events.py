"""The event log: appended lines, followed while they are written, read back as what counts."""

from pathlib import Path

import pytest

from cluster.resilience.lease import Lease
from pipelines.runtime.console import SpeedText
from pipelines.runtime.events import (
    EVENTS_FILE,
    KINDS,
    Checkpoint,
    End,
    Event,
    EventLog,
    EventReader,
    Interval,
    Point,
    Rejected,
    SaveFailed,
    SharedGPU,
    Skipped,
    Start,
    Validation,
    curve,
    event_of,
    groups,
    line_of,
    read_events,
    restarts,
)


def start(step: int, time: float) -> Start:
    return Start(step=step, time=time, workers=1, total=8)


def saved(step: int, time: float, seconds: dict[str, float]) -> Checkpoint:
    return Checkpoint(step=step, time=time, bytes=1, written_seconds=0.1, seconds=seconds)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    EventLog(tmp_path, active=False).write(Point(step=1, values={"loss": 1.0}))
    assert not (tmp_path / EVENTS_FILE).exists()
    EventLog(tmp_path, active=True).write(Point(step=1, values={"loss": 1.0}))
    (event,) = read_events(tmp_path)
    assert isinstance(event, Point)
    assert (event.step, event.values) == (1, {"loss": 1.0})


def test_what_an_older_generation_appends_after_a_newer_one_has_started_is_dropped(
    tmp_path: Path,
) -> None:
    leases = [Lease(tmp_path, number) for number in (1, 2)]
    for lease in leases:
        (tmp_path / f"generation-{lease.generation}").touch()  # The old one is not told yet.
    old, new = (EventLog(tmp_path, active=True, lease=lease) for lease in leases)
    follower = EventReader(tmp_path)

    def point(step: int, loss: float) -> Point:
        return Point(step=step, values={"loss": loss})

    old.write(start(0, 0.0))
    old.write(point(1, 1.0))
    assert [event.generation for event in follower.new_events()] == [1, 1]
    new.write(start(0, 1.0))
    old.write(point(2, 9.0))
    new.write(point(1, 1.5))
    old.write(Skipped(step=3, skipped_steps=9))
    assert [(event.kind, event.step) for event in follower.new_events()] == [
        ("start", 0),
        ("point", 1),
    ]
    old.write(point(4, 9.0))
    assert follower.new_events() == []
    assert [event.values["loss"] for event in curve(read_events(tmp_path))] == [1.5]
    assert EventReader(tmp_path, from_end=True).new_events() == []


def test_an_attempt_that_has_lost_its_lease_writes_nothing(tmp_path: Path) -> None:
    old = EventLog(tmp_path, active=True, lease=Lease.take(tmp_path))
    old.write(start(0, 0.0))
    new = EventLog(tmp_path, active=True, lease=Lease.take(tmp_path))
    old.write(Point(step=1, values={}))
    new.write(start(0, 1.0))
    old.write(Point(step=2, values={}))
    assert len((tmp_path / EVENTS_FILE).read_text().splitlines()) == 2
    assert [(event.kind, event.generation) for event in read_events(tmp_path)] == [
        ("start", 1),
        ("start", 2),
    ]


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    event_reader = EventReader(tmp_path)
    assert event_reader.new_events() == []
    with (tmp_path / EVENTS_FILE).open("w") as file:
        file.write('{"kind": "point", "step": 1, "time": 0}\n{"kind": "po')
        file.flush()
        assert [event.step for event in event_reader.new_events()] == [1]
        assert event_reader.new_events() == []
        file.write('int", "step": 2, "time": 0}\n')
        file.flush()
        assert [event.step for event in event_reader.new_events()] == [2]
    assert EventReader(tmp_path, from_end=True).new_events() == []


def test_half_a_line_of_a_lost_writer_is_cut_off(tmp_path: Path) -> None:
    EventLog(tmp_path, active=True).write(Point(step=1, values={"loss": 1.0}))
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"kind": "point", "step": 2, "lo')
    event_reader = EventReader(tmp_path, from_end=True)
    EventLog(tmp_path, active=False)
    event_log = EventLog(tmp_path, active=True)
    event_log.write(Start(step=1, workers=1, total=8))
    event_log.write(Point(step=2, values={"loss": 2.0}))
    assert [event.kind for event in event_reader.new_events()] == ["start", "point"]
    assert [point.values["loss"] for point in curve(read_events(tmp_path))] == [1.0, 2.0]


def test_what_a_restart_takes_back_does_not_count(tmp_path: Path) -> None:
    event_log = EventLog(tmp_path, active=True)
    event_log.write(Start(step=0, workers=1, total=8))
    for step in (2, 4, 6):
        event_log.write(Point(step=step, values={"loss": float(step)}))
    event_log.write(saved(4, 0.0, {"step": 3.0, "data": 1.0}))
    event_log.write(Start(step=4, workers=1, total=8))
    event_log.write(Point(step=6, values={"loss": 60.0}))
    event_log.write(End(step=6, seconds={"step": 2.0}))
    lines = read_events(tmp_path)
    assert [(point.step, point.values["loss"]) for point in curve(lines)] == [
        (2, 2.0),
        (4, 4.0),
        (6, 60.0),
    ]
    assert [event.step for event in restarts(lines)] == [4]


def test_groups_are_told_apart_by_their_starts() -> None:
    first: list[Event] = [start(0, 1.0), Point(step=1, values={})]
    second: list[Event] = [start(1, 9.0)]
    assert groups([*first, *second]) == [first, second]
    assert groups([]) == []


def test_words_beside_the_bar() -> None:
    speed = SpeedText()
    values = {"images": 1000, "epoch": 0.5, "loss": 0.75}
    first = Point(step=10, time=5.0, values=values)
    assert speed.text(first) == "epoch 0.5  loss 0.7500"
    second = Point(step=20, time=7.0, values={**values, "images": 2000, "accuracy": 0.25})
    assert speed.text(second) == "500 images/s  epoch 0.5  loss 0.7500  accuracy 0.250"
    # After a restart the same images come again: no negative speed.
    assert "images/s" not in speed.text(Point(step=10, time=9.0, values=values))
    # Training knows its pace, and on some GPUs what share of their peak that is.
    pace = {**values, "images_per_second": 1234.0, "mfu": 0.384}
    assert speed.text(Point(step=30, time=9.0, values=pace)) == (
        "1,234 images/s  epoch 0.5  loss 0.7500  MFU 38%"
    )
    # Evaluation counts its images and has no loss.
    evaluated = Point(step=8, time=5.0, values={"images": 1024})
    assert SpeedText().text(evaluated) == "1,024 images"
    assert speed.text(Point(step=1, values={"lr": 0.5})) == ""


EVENTS = [
    start(0, 1.0),
    Point(step=1, time=2.0, values={"loss": 0.5, "images": 16}),
    Point(step=1, time=2.0, values={"loss": 0.5}, seconds={"step": 1.5}),
    Validation(step=1, time=2.0, values={"val_mIoU": 0.25}),
    SharedGPU(step=0, time=1.0, rank=1, host="b", users="others are there", gpus=1),
    Skipped(step=2, time=3.0, skipped_steps=1),
    saved(2, 4.0, {"step": 1.0}),
    Interval(step=2, time=4.2, values={"interval_steps": 640}),
    SaveFailed(step=2, time=4.5, reason="No space left", tries=7, in_a_row=1),
    Rejected(step=0, time=5.0, path="a/b", reason="it is short"),
    End(step=3, time=6.0, seconds={"step": 2.0}),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_every_kind_comes_back_from_its_line(event: Event) -> None:
    assert event_of(line_of(event)) == event
    assert {each.kind for each in EVENTS} == set(KINDS)


def test_metrics_stand_beside_the_other_fields_of_a_line() -> None:
    line = line_of(EVENTS[1])
    assert line == '{"kind": "point", "step": 1, "time": 2.0, "loss": 0.5, "images": 16}'


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="an event of kind 'parade'; there are start, point"):
        event_of('{"kind": "parade", "step": 1}')


@pytest.mark.parametrize("value", [float("nan"), 3])
def test_numbers_survive(value: float, tmp_path: Path) -> None:
    EventLog(tmp_path, active=True).write(Point(step=1, values={"loss": value}))
    assert str(curve(read_events(tmp_path))[0].values["loss"]) == str(value)
