"""A planned fault strikes the right worker before the right step, once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.resilience.fault_injection import VARIABLE, Fault, InjectedFault


@pytest.mark.parametrize("text", [None, ""])
def test_no_plan_no_fault(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, text)
    assert Fault.planned() is None


def test_a_plan_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sigkill rank=1 step=30 marker=/tmp/with a space")
    assert Fault.planned() == Fault("sigkill", 1, 30, Path("/tmp/with a space"))


@pytest.mark.parametrize(
    "text",
    [
        "sigkill",
        "explode rank=1 step=3 marker=/tmp/x",
        "sigkill rank=1 step=3",
        "sigkill rank=1 step=3 marker=",
        "sigkill rank=one step=3 marker=/tmp/x",
        "sigkill rank=1 step=-3 marker=/tmp/x",
        "sigkill rank=1 stop=3 marker=/tmp/x",
        "sigkill rank=1 step=3 twice marker=/tmp/x",
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    words = f"{VARIABLE}=.*expected '<sigkill.raise.hang.spike> rank=R"
    with pytest.raises(ValueError, match=words) as info:
        Fault.planned()
    assert repr(text) in str(info.value)


def test_it_strikes_its_worker_before_its_step_once(tmp_path: Path) -> None:
    fault = Fault("raise", rank=1, step=3, marker=tmp_path / "fired")
    for rank, step in [(0, 3), (1, 2), (1, 4), (3, 1)]:
        fault.fire(rank, step)
    assert not fault.marker.exists()
    with pytest.raises(InjectedFault, match="rank 1 before step 3"):
        fault.fire(1, 3)
    assert fault.marker.read_text() == "raise rank 1 step 3\n"
    fault.fire(1, 3)


def test_a_spike_is_the_callers_to_make(tmp_path: Path) -> None:
    fault = Fault("spike", rank=1, step=3, marker=tmp_path / "fired")
    assert [fault.fire(1, step) for step in (2, 3, 3, 4)] == [False, True, False, False]
    assert fault.marker.exists()


def test_sigkill_leaves_the_marker_and_no_last_words(tmp_path: Path) -> None:
    marker = tmp_path / "fired"
    code = (
        "from cluster.resilience.fault_injection import Fault\n"
        "fault = Fault.planned()\n"
        "for step in range(5):\n"
        "    fault.fire(0, step)\n"
        "    print(step, flush=True)\n"
    )
    plan = {VARIABLE: f"sigkill rank=0 step=2 marker={marker}"}

    def train() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=os.environ | plan, capture_output=True, text=True
        )

    first = train()
    assert first.returncode == -signal.SIGKILL
    assert first.stdout.split() == ["0", "1"]
    assert marker.read_text() == "sigkill rank 0 step 2\n"
    second = train()
    assert (second.returncode, second.stdout.split()) == (0, ["0", "1", "2", "3", "4"])
