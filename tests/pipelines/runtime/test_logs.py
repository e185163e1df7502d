"""Noise of libraries lands in the file, people keep their terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime.logs import redirected, worker_log


def test_everything_goes_to_the_file_and_comes_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "driver.log"
    with pytest.raises(RuntimeError), redirected(log) as terminal:  # noqa: PT012
        os.write(1, b"python\n")
        os.write(2, b"a C++ library\n")
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        terminal.write("for people\n")
        raise RuntimeError
    print("afterwards")
    out, err = capfd.readouterr()
    assert sorted(log.read_text().splitlines()) == ["a C++ library", "a child", "python"]
    assert (out, err) == ("afterwards\n", "for people\n")


def test_a_worker_has_its_own_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("one", "two"):
        with worker_log(tmp_path / "pretrain", 3):
            os.write(1, text.encode())
    assert (tmp_path / "pretrain.rank3.log").read_text() == "onetwo"
    assert capfd.readouterr().out == ""
