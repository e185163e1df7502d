"""A small image collection and the command line, for runs with every real part."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES, TRAIN, VAL = ("disc", "grating", "ramp"), 32, 8
SMALL = (
    "model.image_size=16",
    "pretrain.train_images=96",
    "pretrain.duration=4 epochs",
    "pretrain.global_batch_size=16",
    "pretrain.micro_batch_size=4",
    "pretrain.checkpoint_every=6 steps",
    "pretrain.decoder_dim=16",
    "finetune.duration=2 epochs",
    "finetune.labels_per_class=16",
    "finetune.global_batch_size=16",
    "finetune.micro_batch_size=8",
    "finetune.drop_path=0.2",
    "log_every=2",
    "evaluate.batch_size=8",
)
# Runs are tracked in their own folders, wherever the environment would have them.
TRACKING = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
PRETRAIN_STEPS = 4 * 96 // 16

# Under nohup, or behind a script's &, this process ignores Ctrl-C; what it starts would do so too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy patterns under train/ and val/."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:24] / 24
    patterns = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, np.sin(20 * x) > 0, x)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for name, pattern in zip(CLASSES, patterns, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noisy = 60 + 120 * pattern[..., None] + rng.normal(0, 20, (24, 24, 3))
                pixels = np.clip(noisy, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@dataclass
class Job:
    """One command of ours in a process of its own; all its descendants carry `token`."""

    run_dir: Path
    command: list[str]
    environment: dict[str, str]
    token: str = field(default_factory=lambda: f"{os.getpid()}-{time.time_ns()}")

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={
                **os.environ,
                **dict.fromkeys(TRACKING, ""),
                **self.environment,
                "CONVNEXTV2_TEST_TOKEN": self.token,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, code: int = 0) -> str:
        """Wait for the end and check the exit code; returns standard output."""
        out, err = self.process.communicate(timeout=500)
        assert self.process.returncode == code, f"{out}\n{err}\n{self.logs()}"
        return out

    def result(self) -> dict[str, Any]:
        """Finish a command with --json."""
        parsed: dict[str, Any] = json.loads(self.finish())
        return parsed

    def wait_for_step(self, stage: str, step: int) -> None:
        """Return when training has logged `step` or more."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(line["step"] >= step for line in event_log(self.run_dir, stage)):
                return
            time.sleep(0.05)
        pytest.fail(f"step {step} was not reached: {self.logs()}")

    def wait_for(self, path: Path) -> None:
        """Return when a file or folder is there."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            if path.exists():
                return
            time.sleep(0.05)
        pytest.fail(f"{path} did not come: {self.logs()}")

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends it to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def logs(self) -> str:
        found = sorted((self.run_dir / "logs").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in found)

    def await_end(self) -> None:
        """Nothing of ours may be left; processes of Ray need a moment to follow their driver."""
        deadline = time.monotonic() + 120
        while self.survivors() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.survivors() == []

    def survivors(self) -> list[str]:
        """Command lines of processes that descend from this job and still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                if f"CONVNEXTV2_TEST_TOKEN={self.token}".encode() in environment:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # It ended while we looked, or is not ours to read.
        return [line for line in found if line]


Start = Callable[..., Job]


def begin(
    photos: Path,
    command: str,
    run_dir: Path,
    *more: str,
    settings: tuple[str, ...] = (),
    fault: str = "",
) -> Job:
    """Start `convnextv2 <command>` on the small preset."""
    words = [sys.executable, "-m", "pipelines.cli", command, "--run-dir", str(run_dir)]
    words += ["--preset", "demo"] if command != "demo" else []
    words += ["--data", str(photos), *more]
    words += [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    return Job(run_dir, words, {"CONVNEXTV2_FAULT": fault} if fault else {})


@contextmanager
def launcher(photos: Path) -> Iterator[Start]:
    """`begin` on the photos; what still runs at the end is killed, also after a failure."""
    jobs: list[Job] = []

    def go(command: str, run_dir: Path, *more: str, **options: Any) -> Job:
        jobs.append(begin(photos, command, run_dir, *more, **options))
        return jobs[-1]

    try:
        yield go
    finally:
        for job in jobs:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()
            for pipe in (job.process.stdout, job.process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def start(photos: Path) -> Iterator[Start]:
    """Starts commands that do not outlive the test."""
    with launcher(photos) as go:
        yield go


@pytest.fixture(scope="session")
def straight(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts; read it or copy it."""
    run_dir = tmp_path_factory.mktemp("straight")
    with launcher(photos) as start:
        start("pretrain", run_dir).finish()
    return run_dir


def event_log(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """Whole lines of the stage's metrics so far."""
    lines: list[dict[str, Any]] = []
    for path in (run_dir / "stages" / stage).glob("*/metrics.jsonl"):
        text = path.read_text()
        lines += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return lines


def output(run_dir: Path, stage: str, name: str) -> Path:
    """The one file `name` of a finished stage."""
    (path,) = (run_dir / "stages" / stage).glob(f"[!.]*/{name}")
    return path
