"""One invocation of a pipeline: what MLflow shows of it, with a real store."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from pipelines.graph import Outputs, Pipeline, Stage, StageContext
from pipelines.presets import load_preset
from pipelines.runtime.console import Screen
from pipelines.runtime.events import Point
from pipelines.runtime.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_own_store")]


def invoke(run_dir: Path, seed: int, *, interrupted: bool = False, rerun: str | None = None) -> str:
    """A pipeline of one stage with a curve of four points; returns the invocation's name."""
    screen = Screen(Console(quiet=True))
    with Session(load_preset("demo", [f"seed={seed}"]), run_dir, screen) as session:

        def run(context: StageContext) -> Outputs:
            with session.attempt(context) as run:
                first, last = (0, 2) if interrupted else (2, 4)
                steps = range(first, last)
                lines = [Point(step=n, time=n, values={"loss": n / 4}) for n in steps]
                session.tracker.points(run, lines)
                if interrupted:
                    raise KeyboardInterrupt
            return {}

        session.tracked_as += f"-{seed}"
        stage = Stage(name="pretrain", run=run, settings={"lr": 1})
        Pipeline(run_dir, [stage]).run(rerun=rerun)
        session.results = {"pretrain.loss": 0.75}
    return session.tracked_as


def tracked(run_dir: Path) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir}/mlflow.db")
    return {run.info.run_name: run for run in client.search_runs(["1"])}


def test_a_run_for_every_invocation_and_one_for_a_stage_however_often_it_is_resumed(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        invoke(tmp_path, 1, interrupted=True)
    second = invoke(tmp_path, 2)
    runs = tracked(tmp_path)
    (first,) = (name for name in runs if name.endswith("-1"))
    (stage,) = runs.keys() - {first, second}
    assert [runs[name].info.status for name in (first, second, stage)] == [
        "KILLED",
        "FINISHED",
        "FINISHED",
    ]
    assert [runs[name].data.params["seed"] for name in (first, second)] == ["1", "2"]
    assert [runs[name].data.metrics for name in (first, second)] == [{}, {"pretrain.loss": 0.75}]
    assert runs[stage].data.tags["mlflow.parentRunId"] == runs[second].info.run_id
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(runs[stage].info.run_id, "loss")
    assert [point.step for point in history] == [0, 1, 2, 3]

    # Nothing to do: no run. Done again: another run, the old one stays.
    invoke(tmp_path, 3)
    assert len(tracked(tmp_path)) == 3
    (note,) = tmp_path.glob("stages/pretrain/*/tracking-run.json")
    note.write_text(json.dumps({"run": "pretrain of before"}))
    invoke(tmp_path, 4, rerun="pretrain")
    assert len(tracked(tmp_path)) == 5
    assert tracked(tmp_path)[stage].info.end_time == runs[stage].info.end_time
