"""Lines that a full disk refuses are written later, complete and in order."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from cluster.resilience import incidents
from cluster.resilience import journal as module
from cluster.resilience.incidents import Incident
from cluster.resilience.journal import Journal
from cluster.resilience.lease import Lease

PATIENCE = 60.0  # Seconds until a test that would hang fails instead.


class Disk:
    """Stands in for `os.write`: takes `room` bytes, then fails until it gets more."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int, room: int) -> None:
        self.room, self.failed, self.number, self.real = room, 0, number, os.write
        patch.setattr(os, "write", self)

    def __call__(self, descriptor: int, content: bytes) -> int:
        part = content[: self.room]
        if not part:
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number))
        self.room -= len(part)
        return self.real(descriptor, part)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("room", [0, 4, 6, 9])
def test_what_cannot_be_written_is_written_later(
    room: int,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "lines"
    disk = Disk(monkeypatch, number, room)
    journal = Journal(path)
    for line in ("one", "two", "three"):
        journal.append(line)
    assert disk.failed >= 1
    assert path.read_text() == "one\ntwo\nthree\n"[:room]
    assert caplog.text.count("is written later") == 1, "once is enough"
    disk.room = 1000
    journal.append("four")
    assert path.read_text() == "one\ntwo\nthree\nfour\n"


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    journal = Journal(folder / "lines")
    journal.append("one")
    folder.mkdir()
    journal.append("two")
    assert (folder / "lines").read_text() == "one\ntwo\n"


def test_what_waits_is_written_without_a_further_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    disk = Disk(monkeypatch, errno.ENOSPC, 2)
    journal = Journal(tmp_path / "lines")
    journal.append("one")
    disk.room = 1000
    assert journal.flush()
    assert journal.path.read_text() == "one\n"


class StuckDisk:
    """Stands in for `os.write`: waits until it is let go on, or the test must fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.works, self.struck, self.real = threading.Event(), threading.Event(), os.write
        patch.setattr(os, "write", self)
        patch.setattr(module, "WAIT_SECONDS", 0.05)

    def __call__(self, descriptor: int, content: bytes) -> int:
        self.struck.set()
        self.works.wait(PATIENCE)
        return self.real(descriptor, content)


def test_a_disk_that_is_stuck_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, journal = StuckDisk(monkeypatch), Journal(tmp_path / "lines")
    for line in ("one", "two", "three"):
        journal.append(line)
    assert disk.struck.wait(PATIENCE)
    assert not disk.works.is_set()
    assert journal.path.read_text() == ""
    disk.works.set()
    assert journal.flush()
    assert journal.path.read_text() == "one\ntwo\nthree\n"


def test_a_disk_that_is_stuck_at_the_end_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, journal = StuckDisk(monkeypatch), Journal(tmp_path / "lines")
    journal.append("one")
    assert not journal.flush(seconds=0.01)
    assert f"the last lines of {journal.path} are not written" in caplog.text
    disk.works.set()
    assert journal.flush()


def test_what_waits_is_dropped_once_it_must_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    old = Lease.take(tmp_path)
    disk = Disk(monkeypatch, errno.ENOSPC, 0)
    journal = Journal(tmp_path / "lines", old.held)
    journal.append("one")
    assert disk.failed >= 1
    assert Lease.take(tmp_path).held()
    disk.room = 1000
    assert journal.flush()
    journal.append("two")
    assert journal.path.read_text() == ""


def incident(number: int) -> Incident:
    return Incident(
        id=f"pretrain-{number}",
        time=0.0,
        stage="pretrain",
        generation=number,
        cause="killed",
        rank=1,
        node="",
        host="",
        phase="step",
        step=7,
        error="killed by SIGKILL",
        workers=(2, 2),
    )


def test_incidents_do_not_stop_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.ENOSPC, 10)
    incidents.append(tmp_path, incident(1))
    assert disk.failed == 1
    assert incidents.read(tmp_path) == []
    disk.room = 10_000
    incidents.append(tmp_path, incident(2))
    assert incidents.read(tmp_path) == [incident(1), incident(2)]
    assert len([json.loads(line) for line in (tmp_path / incidents.FILE).open()]) == 2
