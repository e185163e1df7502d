"""Runs that are stopped in every way a person or a cluster stops them, and go on."""

import json
import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import PRETRAIN_STEPS, Start, begin, output, spool

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def straight(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    run_dir = tmp_path_factory.mktemp("straight")
    begin(photos, "pretrain", run_dir).finish()
    return run_dir


def weights(run_dir: Path) -> bytes:
    return output(run_dir, "pretrain", "fcmae.safetensors").read_bytes()


def starts(run_dir: Path) -> list[int]:
    return [line["step"] for line in spool(run_dir, "pretrain") if line["kind"] == "start"]


def left_overs(run_dir: Path) -> list[Path]:
    """Files and folders under a temporary name."""
    return [path for path in run_dir.rglob(".*partial*") if "ray" not in path.parts]


def test_interrupted_run_leaves_nothing_and_goes_on(
    start: Start, straight: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = start("pretrain", run_dir)
    job.wait_for_step("pretrain", 8)
    job.interrupt()
    job.finish(code=130)
    job.await_end()
    assert left_overs(run_dir) == []
    assert not list((run_dir / "stages" / "pretrain").glob("*/COMPLETE.json"))

    start("pretrain", run_dir).finish()
    assert starts(run_dir)[0] == 0
    assert starts(run_dir)[1] >= 6
    assert weights(run_dir) == weights(straight)


def test_killed_driver_then_a_torn_checkpoint(start: Start, straight: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = start("pretrain", run_dir)
    job.wait_for_step("pretrain", 14)
    job.process.kill()
    job.process.wait()
    job.await_end()
    checkpoints = sorted((run_dir / "stages").glob("pretrain/*/checkpoints/step-*"))
    assert [path.name for path in checkpoints][-1] >= "step-00000012"
    torn = max(checkpoints[-1].rglob("*.pt"), key=lambda path: path.stat().st_size)
    os.truncate(torn, torn.stat().st_size // 2)

    start("pretrain", run_dir).finish()
    rejected = [line for line in spool(run_dir, "pretrain") if line["kind"] == "rejected"]
    assert torn.name in rejected[0]["reason"]
    assert starts(run_dir)[1] == int(checkpoints[-2].name.removeprefix("step-"))
    assert weights(run_dir) == weights(straight)


def test_another_number_of_workers_is_refused_in_words(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = start("pretrain", run_dir)
    job.wait_for_step("pretrain", 8)
    job.interrupt()
    job.finish(code=130)
    other = start("pretrain", run_dir, settings=("cluster.num_workers=1",))
    _, err = other.process.communicate(timeout=300)
    assert other.process.returncode == 1
    assert "cluster.num_workers was 2, is 1" in err
    assert "--rerun pretrain" in err


def test_workers_that_keep_dying_end_the_run_with_their_own_words(
    start: Start, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fault = f"raise rank=0 step=9 marker={tmp_path / 'fired'}"
    job = start("pretrain", run_dir, settings=("cluster.max_failures=0",), fault=fault)
    _, err = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert "worker 0" in err
    assert "planned fault on rank 0 before step 9" in err
    job.await_end()

    # Nothing is lost: the next start goes on from the checkpoint before it.
    start("pretrain", run_dir).finish()
    assert starts(run_dir) == [0, 6]
    done = spool(run_dir, "pretrain")[-1]
    assert (done["kind"], done["step"]) == ("end", PRETRAIN_STEPS)


def test_sigterm_is_an_orderly_way_out(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = start("pretrain", run_dir)
    job.wait_for_step("pretrain", 2)
    job.process.send_signal(signal.SIGTERM)
    job.finish(code=130)
    job.await_end()
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    runs = json.loads((run_dir / "tracking-runs.json").read_text())[uri]
    (attempt,) = (run_id for name, run_id in runs.items() if name.startswith("pretrain"))
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(attempt).info.status == "KILLED"
    assert client.get_run(runs["demo"]).info.status == "KILLED"
