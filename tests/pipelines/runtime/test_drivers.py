"""When drivers were at work on a stage, also those that could not say when they ended."""

import os
from pathlib import Path

import pytest

from pipelines.runtime import drivers
from pipelines.runtime.drivers import FILE, Span, at_work, read_spans


class Clock:
    """A clock that the test turns by hand."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(drivers.time, "time", clock.time)
    monkeypatch.setattr(drivers.time, "monotonic", clock.monotonic)
    return clock


def killed(directory: Path, last_seen: float) -> None:
    """Leave what a driver leaves that was killed after it had last touched its file."""
    lines = (directory / FILE).read_text().splitlines()
    (directory / FILE).write_text("\n".join(lines[:-1]) + "\n")
    os.utime(directory / FILE, (last_seen, last_seen))


def test_no_driver_was_there(tmp_path: Path) -> None:
    assert read_spans(tmp_path) == []


def test_drivers_that_ended(tmp_path: Path, clock: Clock) -> None:
    for _ in range(2):
        with at_work(tmp_path):
            clock.now += 10
        clock.now += 5
    assert read_spans(tmp_path) == [Span(1000.0, 1010.0), Span(1015.0, 1025.0)]


def test_one_that_was_killed_was_there_until_it_was_last_seen(tmp_path: Path, clock: Clock) -> None:
    with at_work(tmp_path):
        clock.now += 10
    killed(tmp_path, last_seen=1007.0)
    assert read_spans(tmp_path) == [Span(1000.0, 1007.0)]
    clock.now = 2000.0
    with at_work(tmp_path):
        clock.now += 1
        assert read_spans(tmp_path)[0] == Span(1000.0, 1007.0)
    assert read_spans(tmp_path) == [Span(1000.0, 1007.0), Span(2000.0, 2001.0)]


def test_a_driver_shows_now_and_then_that_it_is_alive(tmp_path: Path, clock: Clock) -> None:
    with at_work(tmp_path) as alive:
        os.utime(tmp_path / FILE, (1000.0, 1000.0))
        alive()
        assert read_spans(tmp_path) == [Span(1000.0, 1000.0)]
        clock.now += drivers.ALIVE_SECONDS + 1
        alive()
        assert read_spans(tmp_path)[0].ended > 1e9, "the file's time is the kernel's, not ours"


def test_half_a_line_that_a_full_disk_left_is_dropped(tmp_path: Path, clock: Clock) -> None:
    with at_work(tmp_path):
        clock.now += 10
    with (tmp_path / FILE).open("a") as file:
        file.write('{"beg')
    assert read_spans(tmp_path) == [Span(1000.0, 1010.0)]
    with at_work(tmp_path):
        clock.now += 10
    assert len(read_spans(tmp_path)) == 2
