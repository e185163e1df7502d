"""One command at a time works in a run folder."""

import errno
import os
from pathlib import Path

import pytest

from pipelines.runtime import run_lock
from pipelines.runtime.run_lock import BusyError, exclusive


def test_the_second_command_is_told_who_works_there(tmp_path: Path) -> None:
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        me = f"process {os.getpid()} on {os.uname().nodename}"
        words = f"{tmp_path} is in use by {me}; wait for it"
        with pytest.raises(BusyError, match=words), exclusive(tmp_path, said.append):
            pass
    with exclusive(tmp_path, said.append):
        pass
    assert said == []


def test_storage_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object) -> bool:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(run_lock, "lock", refuse)
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        [sentence] = said
    assert sentence.startswith(f"{tmp_path} has no file locks (Operation not supported)")
