"""The event log: appended lines, followed while they are written, read back as what counts."""

from pathlib import Path

import pytest

from pipelines.runtime.console import SpeedWords
from pipelines.runtime.events import (
    HAND_OVER,
    LOST,
    SPOOL,
    STARTING,
    EventLog,
    EventReader,
    Line,
    curve,
    read_events,
    restarts,
    seconds_by_phase,
    split,
    wall_by_phase,
)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    EventLog(tmp_path, active=False).write("point", 1, loss=1.0)
    assert not (tmp_path / SPOOL).exists()
    EventLog(tmp_path, active=True).write("point", 1, loss=1.0)
    (line,) = read_events(tmp_path)
    assert (line["kind"], line["step"], line["loss"]) == ("point", 1, 1.0)


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    event_reader = EventReader(tmp_path)
    assert event_reader.new_lines() == []
    with (tmp_path / SPOOL).open("w") as file:
        file.write('{"kind": "point", "step": 1}\n{"kind": "po')
        file.flush()
        assert [line["step"] for line in event_reader.new_lines()] == [1]
        assert event_reader.new_lines() == []
        file.write('int", "step": 2}\n')
        file.flush()
        assert [line["step"] for line in event_reader.new_lines()] == [2]
    assert EventReader(tmp_path, from_end=True).new_lines() == []


def test_half_a_line_of_a_lost_writer_is_cut_off(tmp_path: Path) -> None:
    EventLog(tmp_path, active=True).write("point", 1, loss=1.0)
    with (tmp_path / SPOOL).open("a") as file:
        file.write('{"kind": "point", "step": 2, "lo')
    event_reader = EventReader(tmp_path, from_end=True)
    EventLog(tmp_path, active=False)
    event_log = EventLog(tmp_path, active=True)
    event_log.write("start", 1)
    event_log.write("point", 2, loss=2.0)
    assert [line["kind"] for line in event_reader.new_lines()] == ["start", "point"]
    assert [point["loss"] for point in curve(read_events(tmp_path))] == [1.0, 2.0]


def test_what_a_restart_takes_back_does_not_count(tmp_path: Path) -> None:
    event_log = EventLog(tmp_path, active=True)
    event_log.write("start", 0)
    for step in (2, 4, 6):
        event_log.write("point", step, loss=float(step))
    event_log.write("checkpoint", 4, seconds={"step": 3.0, "data": 1.0})
    event_log.write("start", 4)
    event_log.write("point", 6, loss=60.0)
    event_log.write("end", 6, seconds={"step": 2.0})
    lines = read_events(tmp_path)
    assert [(point["step"], point["loss"]) for point in curve(lines)] == [
        (2, 2.0),
        (4, 4.0),
        (6, 60.0),
    ]
    assert [line["step"] for line in restarts(lines)] == [4]
    # The killed group counts up to its last checkpoint.
    assert seconds_by_phase(lines) == {"step": 5.0, "data": 1.0}


def test_wall_time_is_that_of_the_workers_and_what_is_around_them() -> None:
    lines: list[Line] = [
        {"kind": "start", "step": 0, "time": 103.0},
        {"kind": "checkpoint", "step": 4, "time": 110.0, "seconds": {"start-up": 2.0, "step": 5.0}},
        {"kind": "point", "step": 6, "time": 112.0},
        # This one died before its first checkpoint: all of its time is lost.
        {"kind": "start", "step": 4, "time": 120.0},
        {"kind": "start", "step": 4, "time": 131.0},
        {"kind": "end", "step": 8, "time": 140.0, "seconds": {"start-up": 2.0, "step": 8.0}},
    ]
    spent = wall_by_phase(lines, 99.5, 141.5)
    assert spent == {
        STARTING: 3.5,
        LOST: 20.0,
        "start-up": 4.0,
        "step": 13.0,
        HAND_OVER: 1.5,
    }
    assert sum(spent.values()) == 141.5 - 99.5
    # A worker's clock that is late makes no time negative.
    assert min(wall_by_phase(lines, 104.0, 139.0).values()) == 0
    assert wall_by_phase([], 10.0, 12.0) == {HAND_OVER: 2.0}


def test_groups_are_told_apart_by_when_they_started() -> None:
    first: list[Line] = [{"kind": "start", "step": 0, "time": 1.0}, {"kind": "point", "step": 1}]
    second: list[Line] = [{"kind": "start", "step": 1, "time": 9.0}]
    assert split([*first, *second], 5.0) == (first, second)
    assert split([*first, *second], 0.5) == ([], [*first, *second])
    assert split(first, 5.0) == (first, [])


def test_words_beside_the_bar() -> None:
    speed = SpeedWords()
    first = {"step": 10, "images": 1000, "time": 5.0, "epoch": 0.5, "loss": 0.75}
    assert speed.words(first) == "epoch 0.5  loss 0.7500"
    second = {**first, "step": 20, "images": 2000, "time": 7.0, "accuracy": 0.25}
    assert speed.words(second) == "500 images/s  epoch 0.5  loss 0.7500  accuracy 0.250"
    # After a restart the same images come again: no negative speed.
    assert "images/s" not in speed.words({**first, "time": 9.0})
    assert speed.words({"step": 1, "top1": 0.5}) == "top1 0.5000"
    # Evaluation counts its images and has no loss.
    assert SpeedWords().words({"step": 8, "images": 1024, "time": 5.0}) == "1,024 images"


@pytest.mark.parametrize("value", [float("nan"), 3])
def test_numbers_survive(value: float, tmp_path: Path) -> None:
    EventLog(tmp_path, active=True).write("point", 1, loss=value)
    assert str(read_events(tmp_path)[0]["loss"]) == str(value)
