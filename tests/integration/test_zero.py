"""FCMAE itself under DeepSpeed: its outputs and its mask token must be visible to ZeRO's hooks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_every_stage_trains_the_same_losses(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.zero_losses", str(tmp_path / "meeting")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *others = json.loads(done.stdout.splitlines()[-1])
    assert len(set(first)) == 5
    for losses in others:
        assert losses == pytest.approx(first, rel=1e-5)
