"""A planned fault strikes the right worker at the right place, once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cluster.placement import Placement
from cluster.resilience.fault_injection import VARIABLE, Fault, InjectedFault, Injector


@pytest.mark.parametrize("text", [None, ""])
def test_no_plan_no_fault(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, text)
    assert Injector.planned().faults == []


def test_a_plan_is_read_and_reaches_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [
        Fault("sigkill", 1, 30, Path("/tmp/with a space")),
        Fault("hang", 0, 7, Path("/tmp/x"), phase="checkpoint"),
        Fault("flip", 0, 7, Path("/tmp/y"), phase="compare"),
    ]
    text = "sigkill rank=1 step=30 marker=/tmp/with a space\n" + "\n".join(
        fault.line for fault in faults[1:]
    )
    monkeypatch.setenv(VARIABLE, text)
    assert Injector.planned().faults == faults
    assert Placement(num_workers=2).environment[VARIABLE] == text


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
        "sigkill rank=1 step=3 phase= marker=/tmp/x",
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    words = f"{VARIABLE}=.*expected '<sigkill.*> rank=R"
    with pytest.raises(ValueError, match=words) as info:
        Injector.planned()
    assert repr(text) in str(info.value)


def test_it_strikes_its_worker_in_its_phase_from_its_step_on_and_once(tmp_path: Path) -> None:
    fault = Fault("raise", rank=1, step=3, marker=tmp_path / "fired", phase="checkpoint")
    injector = Injector([fault])
    for rank, step, phase in [(0, 3, "checkpoint"), (1, 2, "checkpoint"), (1, 4, "step")]:
        injector.strike(rank, step, phase)
    assert not fault.marker.exists()
    with pytest.raises(InjectedFault, match="rank 1 after step 4"):
        injector.strike(1, 4, "checkpoint")
    fired = json.loads(fault.marker.read_text())
    assert (fired["kind"], fired["rank"], fired["step"], fired["pid"]) == (
        "raise",
        1,
        4,
        os.getpid(),
    )
    injector.strike(1, 4, "checkpoint")


class Output(NamedTuple):
    loss: Tensor


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 3.0))

    def forward(self) -> Output:
        return Output(self.weight.sum())


def test_a_nan_comes_at_its_step_alone_and_each_time(tmp_path: Path) -> None:
    injector, task = Injector([Fault("nan", 3, 5, tmp_path / "fired")]), Task()
    injector.watch(task)
    nan_at = []
    for step in (4, 5, 6, 5):
        # Of two workers, the second one stands for the fourth.
        injector.strike(0, step, world_size=2)
        assert task().loss.isfinite()
        injector.strike(1, step, world_size=2)
        nan_at += [step] if task().loss.isnan() else []
    assert nan_at == [5, 5]
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flip_changes_one_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    task = Task().to(dtype)
    injector = Injector([Fault.parse(f"flip rank=0 step=2 marker={tmp_path / 'fired'}")])
    injector.watch(task)
    for step in (1, 2, 3):
        injector.strike(0, step)
        assert task.weight.tolist() == [3.0, 3.0]
    injector.strike(0, 3, "compare")
    first, second = task.weight.tolist()
    assert second == 3.0
    assert 0 < abs(first - 3.0) < 1


def test_a_spike_comes_once(tmp_path: Path) -> None:
    injector, task = Injector([Fault("spike", 1, 3, tmp_path / "fired")]), Task()
    injector.watch(task)
    losses = []
    for step in (2, 3, 4, 3):
        injector.strike(1, step)
        losses.append(task().loss.item())
    assert losses == [6.0, 6e4, 6.0, 6.0]


def test_what_is_asked_for_is_done_by_somebody_else(tmp_path: Path) -> None:
    Injector([Fault("ask", 0, 2, tmp_path / "asked")]).strike(0, 2)
    assert (tmp_path / "asked").exists()


@pytest.mark.parametrize(("kind", "killed"), [("sigkill", "itself"), ("agent", "its parent")])
def test_a_kill_leaves_the_marker_and_no_last_words(kind: str, killed: str, tmp_path: Path) -> None:
    marker = tmp_path / "fired"
    work = (
        "from cluster.resilience.fault_injection import Injector\n"
        "injector = Injector.planned()\n"
        "for step in range(5):\n"
        "    injector.strike(0, step)\n"
        "    print(step, flush=True)\n"
    )
    if killed == "its parent":
        # As an agent's child, which the kernel kills when the agent is gone.
        work = (
            "import subprocess, sys\n"
            f"work = 'import os, cluster.workers.child as child\\nchild._die_with(os.getppid())\\n'"
            f" + {work!r}\n"
            "sys.exit(subprocess.run([sys.executable, '-c', work]).returncode)\n"
        )
    plan = {VARIABLE: f"{kind} rank=0 step=2 marker={marker}"}

    def train() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", work], env=os.environ | plan, capture_output=True, text=True
        )

    first = train()
    assert first.returncode == -signal.SIGKILL
    assert first.stdout.split() == ["0", "1"]
    assert json.loads(marker.read_text())["step"] == 2
    second = train()
    assert (second.returncode, second.stdout.split()) == (0, ["0", "1", "2", "3", "4"])
