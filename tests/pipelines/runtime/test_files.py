"""A file is there whole or not at all."""

import json
from pathlib import Path

import pytest

from pipelines.runtime.files import atomically, write_json


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
