"""A file is there whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from convnextv2.durable import atomically, is_at, lock, sync, write_json

Patch = pytest.MonkeyPatch


def test_the_name_appears_when_the_content_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    with atomically(target) as partial:
        partial.write_text("half")
        assert not target.exists()
        partial.write_text("whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"top1": 0.5})
    with pytest.raises(TypeError):
        write_json(target, {"top1": object()})
    with pytest.raises(OSError, match="No space left"):
        _fill_the_disk(target)
    assert json.loads(target.read_text()) == {"top1": 0.5}
    assert list(tmp_path.iterdir()) == [target]


def _fill_the_disk(target: Path) -> None:
    with atomically(target) as partial:
        partial.symlink_to("/dev/full")
        partial.write_text("more than fits")


def test_content_and_name_are_on_disk_in_that_order(tmp_path: Path, monkeypatch: Patch) -> None:
    fsync, replace = os.fsync, os.replace
    seen = []

    def see_fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def see_replace(old: Path, new: Path) -> None:
        seen.append(f"rename to {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "replace", see_replace)
    write_json(tmp_path / "a.json", {})
    assert seen == ["sync .a.json.partial", "rename to a.json", f"sync {tmp_path.name}"]
    seen.clear()
    with atomically(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "inside").touch()
    assert seen == [
        "sync inside", "sync .folder.partial", "rename to folder", f"sync {tmp_path.name}"
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_will_do_but_no_broken_one(
    answer: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(answer, os.strerror(answer))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(answer)):
        sync(tmp_path / "file")
    if answer == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            sync(tmp_path)
    else:
        sync(tmp_path)


def test_a_lock_is_one_owners_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as mine, path.open("a") as other:
        assert lock(mine)
        assert not lock(other)
        mine.close()
        assert lock(other)
        assert is_at(other.fileno(), path)
        path.unlink()
        assert not is_at(other.fileno(), path)
