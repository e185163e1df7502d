"""The driver's look at the event log: it holds nothing up, and misses nothing."""

import threading
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from pipelines.runtime.events import EVENTS_FILE, EventLog, Point
from pipelines.runtime.follow import EventForwarder, OffThread

PATIENCE = 60.0  # Seconds until a test that would hang fails instead.


def test_a_look_that_hangs_holds_nothing_up() -> None:
    hangs, works = threading.Event(), threading.Event()
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        hangs.set()
        assert works.wait(PATIENCE)

    with OffThread(look) as follow:
        follow()
        assert hangs.wait(PATIENCE)
        follow()
        follow()
        assert looks == [0], "one at a time"
        works.set()
    assert looks == [0, 1], "a last one, which sees what the one that hung did not"


def test_a_look_that_hangs_to_the_last_is_left_behind() -> None:
    works, looked = threading.Event(), threading.Event()

    def look() -> None:
        assert works.wait(PATIENCE)
        looked.set()

    with OffThread(look, seconds=0.01) as follow:
        follow()
    assert not looked.is_set()
    works.set()
    assert looked.wait(PATIENCE)


def test_what_a_look_raises_ends_the_block() -> None:
    def look() -> None:
        raise ValueError("an event of kind 'parade'")

    with pytest.raises(ValueError, match="parade"), OffThread(look):
        pass


def test_storage_that_cannot_be_read_is_looked_at_later(tmp_path: Path) -> None:
    screen, live = MagicMock(), MagicMock(follow=lambda events: [], words="")
    follower = EventForwarder(tmp_path, "run", live, screen, MagicMock())
    blocked = tmp_path / EVENTS_FILE
    blocked.mkdir()  # Opening it is an OSError.
    follower.look()
    blocked.rmdir()
    EventLog(tmp_path, active=True).write(Point(step=1, values={"loss": 1.0}))
    follower.look()
    screen.progress.assert_called_once()
