"""The whole job with every real part, small: stages, caching, tracking, report."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.integration.conftest import Start, event_log, output

pytestmark = pytest.mark.slow

STAGES = [
    "write",
    "pretrain",
    "finetune",
    "finetune-scratch",
    "evaluate",
    "evaluate-scratch",
    "report",
]


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in result["stages"]}


def test_the_whole_job_then_nothing_then_a_part_of_it(start: Start, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start("demo", run_dir, "--json")
    result = first.result()
    assert statuses(result) == dict.fromkeys(STAGES, "run")
    assert set(result["evaluations"]) == {"finetune", "finetune-scratch"}
    assert result["evaluations"]["finetune"]["images"] == 24
    first.await_end()
    page = output(run_dir, "report", "report.html").read_text()
    assert f"{result['evaluations']['finetune']['top1']:.1%}" in page
    check_tracking(run_dir)

    # Nothing has changed: nothing runs, no worker starts.
    pretrained = output(run_dir, "pretrain", "fcmae.safetensors").read_bytes()
    second = start("demo", run_dir, "--json").result()
    assert statuses(second) == dict.fromkeys(STAGES, "done")
    assert second["evaluations"] == result["evaluations"]

    # A thousand bytes of an output change: they are seen, kept, and made again without training.
    damaged = output(run_dir, "pretrain", "fcmae.safetensors")
    damaged.write_bytes(pretrained[:5000] + bytes(1000) + pretrained[6000:])
    mended = start("finetune", run_dir, "--json").result()
    assert statuses(mended) == {
        **dict.fromkeys(["write", "finetune", "finetune-scratch"], "done"),
        "pretrain": "resumed",
    }
    assert damaged.read_bytes() == pretrained
    output(run_dir, "pretrain", "fcmae.safetensors.damaged-*")

    # The report of another configuration shows what is there, and runs nothing else.
    other = start("report", run_dir, "--json", settings=("finetune.base_lr=0.01",)).result()
    assert statuses(other) == {"write": "done", "pretrain": "done", "report": "run"}
    page = Path(other["stages"][-1]["directory"], "report.html").read_text()
    assert "base_lr 0.006 → 0.01" in page

    # Redoing a stage redoes what reads it, and nothing else; the same inputs give the same result.
    before = output(run_dir, "evaluate", "result.json").read_bytes()
    third = start("demo", run_dir, "--json", "--rerun", "evaluate").result()
    redone = {name for name, status in statuses(third).items() if status == "run"}
    assert redone == {"evaluate", "report"}
    (kept,) = (run_dir / "stages" / "evaluate" / "replaced").glob("*/result.json")
    assert kept.read_bytes() == before
    assert third["evaluations"] == result["evaluations"]
    assert output(run_dir, "pretrain", "fcmae.safetensors").read_bytes() == pretrained

    # How it is computed is not what is computed: one worker instead of two changes no key.
    alone = start("pretrain", run_dir, "--json", settings=("cluster.num_workers=1",)).result()
    assert statuses(alone) == {"write": "done", "pretrain": "done"}


def check_tracking(run_dir: Path) -> None:
    """A parent run, a finished child per stage with metrics, and the report as an artifact."""
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("convnextv2")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_stage = {run.data.tags.get("stage", "parent"): run for run in runs}
    assert set(by_stage) == {"parent", *STAGES}
    assert {run.info.status for run in runs} == {"FINISHED"}
    invocation = by_stage.pop("parent")
    assert invocation.data.metrics.keys() >= {"finetune.top1", "pretrain.loss"}
    assert invocation.data.params["finetune.base_lr"]
    parent = invocation.info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in by_stage.values()} == {parent}
    logged = client.get_metric_history(by_stage["pretrain"].info.run_id, "loss")
    points = [line for line in event_log(run_dir, "pretrain") if line["kind"] == "point"]
    assert [(m.step, m.value) for m in logged] == [(p["step"], p["loss"]) for p in points]
    assert any(artifact.path == "report.html" for artifact in client.list_artifacts(parent))
    assert "git.commit" in by_stage["pretrain"].data.tags
    assert by_stage["pretrain"].data.params["pretrain.base_lr"]


@pytest.mark.soak
def test_a_killed_worker_does_not_stop_the_run_nor_change_its_result(
    start: Start, straight: Path, tmp_path: Path
) -> None:
    marker, killed = tmp_path / "fired", tmp_path / "killed"
    fault = f"sigkill rank=1 step=15 marker={marker}"
    start("pretrain", killed, fault=fault).finish()
    fired = json.loads(marker.read_text())
    assert (fired["kind"], fired["rank"], fired["step"]) == ("sigkill", 1, 15)
    first, second = (line for line in event_log(killed, "pretrain") if line["kind"] == "start")
    assert (first["step"], first["workers"], second["workers"]) == (0, 2, 2)
    # The checkpoint of step 12 may have been on its way to disk.
    assert second["step"] in (6, 12)

    weights = [output(run, "pretrain", "fcmae.safetensors") for run in (straight, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
