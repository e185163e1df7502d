"""A real run whose storage is full, gone and stuck for seconds: training goes on by itself."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.checkpoint.store import latest_good, step_of
from tests.cluster.disk import Disk, mounted
from tests.integration.conftest import Job, Start, event_log

pytestmark = pytest.mark.soak

LONG = ("pretrain.duration=20000 epochs", "pretrain.checkpoint_every=20 steps")
OUTAGE_SECONDS = 3.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path, megabytes=300) as disk:
        yield disk


def newest(run_dir: Path) -> int:
    found = run_dir.glob("stages/pretrain/*/checkpoints/step-*")
    return max((step_of(path) for path in found), default=0)


def wait_for_checkpoint(job: Job, after: int) -> int:
    """The step of a checkpoint later than this one."""
    deadline = time.monotonic() + 300
    while (step := newest(job.run_dir)) <= after:
        assert time.monotonic() < deadline, job.logs()
        assert job.process.poll() is None, job.logs()
        time.sleep(0.1)
    return step


def test_a_run_outlasts_its_storage(start: Start, disk: Disk) -> None:
    job = start("pretrain", disk.folder / "run", settings=LONG)
    saved = wait_for_checkpoint(job, 0)
    outages: dict[str, tuple[float, float]] = {}
    faults: list[tuple[Callable[[Disk], None], Callable[[Disk], None]]] = [
        (Disk.fill, Disk.empty),
        (Disk.detach, Disk.mount),
        (Disk.freeze, Disk.thaw),
    ]
    for begin, end in faults:
        begin(disk)
        began = time.time()
        time.sleep(OUTAGE_SECONDS)
        outages[begin.__name__] = (began, time.time())
        end(disk)
        # The one that was being saved before the outage is not proof.
        saved = wait_for_checkpoint(job, wait_for_checkpoint(job, saved))
    job.interrupt()
    job.finish(code=130)
    lines = event_log(job.run_dir, "pretrain")
    assert [line["step"] for line in lines if line["kind"] == "start"] == [0], (
        "one group did it all"
    )
    points = [line for line in lines if line["kind"] == "point"]
    steps = [point["step"] for point in points]
    assert steps == list(range(2, steps[-1] + 1, 2)), "what was not written was written later"
    for name in ("fill", "detach"):
        began, ended = outages[name]
        assert any(began < point["time"] < ended for point in points), "training went on"
    [checkpoints] = job.run_dir.glob("stages/pretrain/*/checkpoints")
    found = latest_good(checkpoints).found
    assert found is not None
    assert found.step >= saved
