"""A whole run on a file system that is stuck, full and read-only for a while."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.checkpoint.disk import mounted
from tests.integration.conftest import PRETRAIN_STEPS, Job, Start, event_log, output

pytestmark = pytest.mark.soak

SETTINGS = ("cluster.max_failed_saves=9",)


class Stops:
    """Steps before which rank 0 stops itself, so that the disk can be changed at leisure.

    The markers are on another disk.
    """

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.markers = {step: folder / f"step-{step}" for step in steps}

    @property
    def fault(self) -> str:
        return "\n".join(
            f"sigstop rank=0 step={step} marker={marker}" for step, marker in self.markers.items()
        )

    def reached(self, step: int, job: Job) -> int:
        """Wait for a stop; returns the number of the process, which goes on by SIGCONT."""
        job.wait_for(self.markers[step])
        content = self.markers[step].read_text()
        deadline = time.monotonic() + 60
        while not content.endswith("\n"):
            assert time.monotonic() < deadline, content
            content = self.markers[step].read_text()
        return int(json.loads(content)["pid"])


def test_a_run_outlasts_its_storage(start: Start, straight: Path, tmp_path: Path) -> None:
    stops = Stops(tmp_path, [2, 10, 19])
    with mounted(tmp_path, megabytes=256) as disk:
        job = start("pretrain", disk.folder / "run", settings=SETTINGS, fault=stops.fault)
        worker = stops.reached(2, job)
        disk.freeze()
        try:
            os.kill(worker, signal.SIGCONT)
            stops.reached(10, job)  # Neither the log's lines nor the save of step 6 hold it up.
        finally:
            disk.thaw()
        disk.fill()
        os.kill(worker, signal.SIGCONT)
        stops.reached(19, job)  # The save of step 12 is given up by the one of step 18.
        disk.empty()
        disk.forbid()
        os.kill(worker, signal.SIGCONT)
        wait_for_words(os.strerror(errno.EROFS), job)
        disk.permit()
        job.finish()
        lines = event_log(job.run_dir, "pretrain")
        lost = {line["step"]: line["reason"] for line in lines if line["kind"] == "save_failed"}
        assert os.strerror(errno.ENOSPC) in lost[12]
        assert [line["step"] for line in lines if line["kind"] == "start"] == [0], "no restart"
        points = [line["step"] for line in lines if line["kind"] == "point"]
        assert points == list(range(2, PRETRAIN_STEPS + 1, 2)), "all are written, later"
        weights = [output(run, "pretrain", "fcmae.safetensors") for run in (job.run_dir, straight)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def wait_for_words(words: str, job: Job) -> None:
    """Return when a log of the run has these words."""
    deadline = time.monotonic() + 120
    while words not in job.logs():
        assert time.monotonic() < deadline, job.logs()
        assert job.process.poll() is None, job.logs()
        time.sleep(0.05)
