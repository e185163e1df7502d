"""Runs that are stopped in every way a person or a cluster stops them, and go on."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipelines.runtime.events import EVENTS_FILE, Event, curve, read_events
from tests.integration.conftest import PRETRAIN_STEPS, Job, Start, event_log, launcher, output
from tests.pipelines.graph.kitchen import snapshot

pytestmark = pytest.mark.soak


def weights(run_dir: Path) -> bytes:
    return output(run_dir, "pretrain", "fcmae.safetensors").read_bytes()


def starts(run_dir: Path) -> list[int]:
    return [line["step"] for line in event_log(run_dir, "pretrain") if line["kind"] == "start"]


def all_events(run_dir: Path) -> list[Event]:
    return read_events(output(run_dir, "pretrain", EVENTS_FILE).parent)


def left_overs(run_dir: Path) -> list[Path]:
    """Files and folders under a temporary name."""
    return [path for path in run_dir.rglob(".*partial*") if "ray" not in path.parts]


def begun_and_held(start: Start, run_dir: Path, *more: str) -> Job:
    """A pretraining that hangs before step 9, with the checkpoint of step 6 on disk."""
    marker = run_dir.with_suffix(".fired")
    job = start("pretrain", run_dir, *more, fault=f"hang rank=1 step=9 marker={marker}")
    job.wait_for(marker)
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("stages/pretrain/*/checkpoints/step-00000006")):
        assert time.monotonic() < deadline, job.logs()
        time.sleep(0.05)
    return job


@pytest.fixture(scope="module")
def half_done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that was interrupted after the checkpoint of step 6."""
    run_dir = tmp_path_factory.mktemp("half") / "run"
    with launcher(photos) as start:
        job = begun_and_held(start, run_dir)
        job.interrupt()
        job.finish(code=130)
        job.await_end()
    return run_dir


def test_interrupted_run_leaves_nothing_and_goes_on(
    start: Start, straight: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = begun_and_held(start, run_dir)
    job.interrupt()
    job.finish(code=130)
    job.await_end()
    assert left_overs(run_dir) == []
    assert not list((run_dir / "stages" / "pretrain").glob("*/COMPLETE.json"))

    start("pretrain", run_dir).finish()
    assert starts(run_dir) == [0, 6]
    assert weights(run_dir) == weights(straight)


def test_an_interrupted_rerun_goes_on_and_leaves_other_configurations_alone(
    start: Start, straight: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(straight, tmp_path / "run"))
    stage = run_dir / "stages" / "pretrain"
    (ours,) = stage.iterdir()
    start("pretrain", run_dir, settings=("seed=1",)).finish()
    (other,) = (folder for folder in stage.iterdir() if folder != ours)
    before = snapshot(other)

    job = begun_and_held(start, run_dir, "--rerun", "pretrain")
    job.interrupt()
    job.finish(code=130)
    start("pretrain", run_dir, "--rerun", "pretrain").finish()
    begun = [event.step for event in read_events(ours) if event.kind == "start"]
    assert begun == [0, 6]
    weights_now = (ours / "fcmae.safetensors").read_bytes()
    (kept,) = (stage / "replaced").iterdir()
    assert weights_now == (kept / "fcmae.safetensors").read_bytes() == weights(straight)
    assert snapshot(other) == before
    assert set(stage.iterdir()) == {ours, other, stage / "replaced"}


def test_killed_driver_then_a_torn_checkpoint(start: Start, straight: Path, tmp_path: Path) -> None:
    run_dir, marker = tmp_path / "run", tmp_path / "fired"
    job = start("pretrain", run_dir, fault=f"hang rank=0 step=15 marker={marker}")
    job.wait_for(marker)
    (stage,) = (run_dir / "stages" / "pretrain").glob("*/checkpoints")
    job.wait_for(stage / "step-00000012")
    job.process.kill()
    job.process.wait()
    job.await_end()
    checkpoints = sorted((run_dir / "stages").glob("pretrain/*/checkpoints/step-*"))
    assert [path.name for path in checkpoints] == ["step-00000006", "step-00000012"]
    torn = max(checkpoints[-1].rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    os.truncate(torn, torn.stat().st_size // 2)

    start("pretrain", run_dir).finish()
    rejected = [line for line in event_log(run_dir, "pretrain") if line["kind"] == "rejected"]
    assert torn.name in rejected[0]["reason"]
    assert starts(run_dir)[1] == int(checkpoints[-2].name.removeprefix("step-"))
    assert weights(run_dir) == weights(straight)


@pytest.mark.parametrize(
    "settings",
    [
        ("cluster.num_workers=1",),
        ("cluster.zero.stage=3",),
        ("cluster.num_workers=4", "cluster.zero.stage=2", "finetune.micro_batch_size=4"),
    ],
)
def test_half_done_training_goes_on_with_other_workers(
    settings: tuple[str, ...], start: Start, straight: Path, half_done: Path, tmp_path: Path
) -> None:
    original = snapshot(half_done)
    run_dir = Path(shutil.copytree(half_done, tmp_path / "run"))
    start("pretrain", run_dir, settings=settings).finish()
    assert starts(run_dir) == [0, 6]
    assert snapshot(half_done) == original
    losses = [
        [point.values["loss"] for point in curve(all_events(run))] for run in (run_dir, straight)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    mine, theirs = (
        load_file(output(run, "pretrain", "fcmae.safetensors")) for run in (run_dir, straight)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_workers_that_keep_dying_end_the_run_with_their_own_words(
    start: Start, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fault = f"raise rank=0 step=9 marker={tmp_path / 'fired'}"
    job = start("pretrain", run_dir, settings=("cluster.max_failures=0",), fault=fault)
    _, err = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert "worker 0" in err
    assert "planned fault on rank 0 after step 9" in err
    job.await_end()

    # Nothing is lost: the next start goes on from the checkpoint before it.
    start("pretrain", run_dir).finish()
    assert starts(run_dir) == [0, 6]
    done = event_log(run_dir, "pretrain")[-1]
    assert (done["kind"], done["step"]) == ("end", PRETRAIN_STEPS)


def test_sigterm_is_an_orderly_way_out(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = start("pretrain", run_dir)
    job.wait_for_step("pretrain", 2)
    job.process.send_signal(signal.SIGTERM)
    job.finish(code=130)
    job.await_end()
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")
    status = {
        run.info.run_name.partition("-")[0]: run.info.status for run in client.search_runs(["1"])
    }
    assert status == {"demo": "KILLED", "write": "FINISHED", "pretrain": "KILLED"}
