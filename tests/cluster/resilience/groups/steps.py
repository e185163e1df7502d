"""The job of these tests' workers: steps with one collective each, and a file as checkpoint."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.workers.current import Stopped, Unusable, worker


@dataclass(frozen=True)
class Steps:
    """`total` steps with a checkpoint every `every`; they end early once the file `finish` exists.

    `fault` happens to `rank` after step `at`, `often` times, and only once the file `wait_for`
    exists. Every step adds a line to the log of its rank, which shows the steps done twice.
    """

    folder: Path
    total: int = 20
    every: int = 5
    fault: str = ""
    rank: int = 1
    at: int = 12
    often: int = 1
    pause: float = 0.02
    wait_for: str = ""


def prepare() -> None:
    """Nothing to do: unpickling this function imports the module, and with it PyTorch."""


def run(steps: Steps) -> None:
    rank, here = dist.get_rank(), worker()
    checkpoint = steps.folder / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    here.beacon.began = step
    here.beacon.stepped(step)
    here.milestone("weights")
    if step == steps.total:
        here.milestone("first step")
    while step < steps.total:
        fail(steps, rank, step)
        here.beacon.enter("step", usual=10.0 if steps.wait_for else 0.1)
        here.beacon.passed()
        finish = (steps.folder / "finish").exists()
        wanted = torch.tensor([float(here.beacon.stop_requested), float(finish)])
        dist.all_reduce(wanted)
        if wanted[1] > 0:
            return
        time.sleep(steps.pause)
        step += 1
        here.beacon.stepped(step)
        here.milestone("first step")
        with (steps.folder / f"steps-{rank}").open("a") as file:
            file.write(f"{step} {dist.get_world_size()}\n")
        if step == steps.at:
            dist.barrier()  # The others are ended at once, and must have noted this step before.
        if step % steps.every == 0 or wanted[0] > 0:
            if rank == 0:
                checkpoint.with_suffix(".new").write_text(str(step))
                checkpoint.with_suffix(".new").replace(checkpoint)
            dist.barrier()
            here.beacon.saved = step
            here.beacon.show()
        if wanted[0] > 0:
            raise Stopped
    fail(steps, rank, step)


def fail(steps: Steps, rank: int, step: int) -> None:
    if not steps.fault or rank != steps.rank or step != steps.at:
        return
    marks = list(steps.folder.glob("fired-*"))
    if len(marks) >= steps.often:
        return
    while steps.wait_for and not (steps.folder / steps.wait_for).exists():
        time.sleep(0.05)
        worker().beacon.enter("step", usual=10.0)
    (steps.folder / f"fired-{len(marks)}").touch()
    if steps.fault == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif steps.fault == "sigstop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif steps.fault == "raise":
        raise KeyError("no such photograph")
    elif steps.fault == "unusable":
        raise Unusable("the GPU has fallen off the bus")
    elif steps.fault == "exit":
        os._exit(3)
    elif steps.fault == "hang":
        worker().beacon.enter("step", usual=0.1)
        time.sleep(1000)
    else:
        raise AssertionError(steps.fault)
