"""Fault plans on real clusters of several nodes: the command, from the plan to its exit code."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from mlflow import MlflowClient

from cluster.laboratory.nodes import laboratory
from cluster.resilience.faults import Cause
from pipelines.faults.reading import plan_file


def run(
    plan: str | dict[str, object],
    folder: Path,
    code: int,
    *more: str,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`convnextv2 faults run --json`; what drivers printed is in the error of a failed one."""
    if not isinstance(plan, str):
        path = folder.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(plan))
        plan = str(path)
    words = [sys.executable, "-m", "pipelines", "faults", "run", "--json", *more]
    words += ["--plan", plan, "--run-dir", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{printed(folder)}"
    result: dict[str, Any] = json.loads(done.stdout)
    assert result == json.loads((folder / "result.json").read_text())
    return result


def printed(folder: Path) -> str:
    return "\n".join(path.read_text()[-4000:] for path in sorted(folder.glob("*.txt")))


def tracked(run_dir: Path) -> dict[str, float]:
    """The causes of incidents that MLflow knows."""
    runs = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}").search_runs(["1"])
    [stage] = [run for run in runs if run.data.tags.get("stage") == "pretrain"]
    return {
        name: value
        for name, value in stage.data.metrics.items()
        if name.removeprefix("incidents.") in get_args(Cause)
    }


def failed(result: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["words"] for check in result["checks"] if not check["passed"]}


SHORT = {"set": ["pretrain.duration=12 epochs"]}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial, one of whose faults never fires."""
    folder = tmp_path_factory.mktemp("trials") / "trial"
    faults = [
        {"when": "step 15", "what": "nan"},
        {"when": "step 25", "what": "kill worker", "where": "rank 1"},
        {"when": "step 45", "what": "kill raylet", "where": "rank 0"},
        {"when": "step 500", "what": "raise", "where": "rank 1"},
    ]
    cluster = {"local": {"nodes": 3, "replace": False}}
    run({"run": SHORT, "cluster": cluster, "faults": faults}, folder, code=1)
    return folder


@pytest.mark.soak
def test_a_run_is_what_it_would_have_been_and_a_fault_that_never_fires_is_told(trial: Path) -> None:
    result = json.loads((trial / "result.json").read_text())
    assert failed(result) == {"faults": "fault 4 (raise, step 500, rank 1) has not fired"}
    nan, killed, node, never = result["faults"]
    assert nan["followed"] == "step 16 was left out, on all workers"
    assert (killed["incident"]["cause"], killed["incident"]["rank"]) == ("killed", 1)
    assert (node["incident"]["cause"], node["incident"]["recovered"]) == ("node", True)
    assert (never["fired"], never["incident"]) == (None, None)
    assert tracked(trial / "disturbed") == {"incidents.killed": 1, "incidents.node": 1}
    assert 0 < result["goodput"] < 1
    assert sum(result["seconds"].values()) == pytest.approx(result["wall"])


@pytest.mark.soak
def test_a_cluster_that_is_there_already_and_an_undisturbed_run_that_is(
    trial: Path, tmp_path: Path
) -> None:
    faults = [
        {"when": "step 15", "what": "nan"},
        {"when": "checkpoint 30", "what": "kill agent", "where": "rank 1"},
        {"when": "compare 50", "what": "flip weight", "where": "rank 0"},
    ]
    baseline = ("--baseline", str(trial / "undisturbed"))
    with laboratory() as lab:
        lab.have(2)
        same = {"set": [*SHORT["set"], f"data.source={trial / 'images'}"]}
        plan = {"run": same, "cluster": {"address": lab.address}, "faults": faults}
        result = run(plan, tmp_path / "trial", 0, *baseline, environment=lab.environment)
    causes = [fault["incident"] and fault["incident"]["cause"] for fault in result["faults"]]
    assert causes == [None, "node", "divergence"]
    assert failed(result) == {
        "processes": "the nodes are elsewhere, and are not looked at from here"
    }


@pytest.mark.soak
def test_a_run_shrinks_grows_and_outlives_its_driver(tmp_path: Path) -> None:
    result = run("elastic", tmp_path / "trial", code=0)
    weights = next(check for check in result["checks"] if check["name"] == "weights")
    assert "the groups had 1, 2 workers" in weights["words"]
    assert result["seconds"]["idle"] > 0


@pytest.mark.soak
def test_links_are_slow_and_cut(tmp_path: Path) -> None:
    result = run("links", tmp_path / "trial", code=0)
    incidents = {fault["what"]: fault["incident"] for fault in result["faults"]}
    assert {what for what, incident in incidents.items() if incident is None} == {
        "slow link",
        "cut link for 2 s",
    }
    lost = [incident for incident in incidents.values() if incident is not None]
    assert {incident["cause"] for incident in lost} == {"node"}
    assert len({incident["host"] for incident in lost}) > 1
    assert {fault["followed"] for fault in result["faults"] if fault["incident"] is not None} == {
        "no answer for 10 s"
    }, "before Ray says that the node died"


@pytest.mark.soak
def test_ten_random_faults(tmp_path: Path) -> None:
    """As `--plan soak`, whose thirty take too long to be repeated at every change."""
    plan = yaml.safe_load(plan_file(Path("soak")).read_text())
    plan["run"]["set"] = ["pretrain.duration=40 epochs"]
    plan["random"]["count"] = 10
    result = run(plan, tmp_path / "trial", code=0)
    whats = [fault["what"] for fault in result["faults"]]
    assert len(whats) == 10
    assert "spike" in whats
