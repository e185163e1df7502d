"""What the driver passes on while a stage runs: incidents, to a real MLflow store."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from cluster.resilience import incidents
from pipelines.runtime.console import Screen
from pipelines.runtime.follow import EventForwarder
from pipelines.runtime.live import Live
from pipelines.runtime.tracking import Destination, Tracker, tracker
from tests.pipelines.report.made_up_run import KILLED
from tests.pipelines.runtime.test_live import BEGAN, Metrics, begun

RUN = "pretrain-1"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_own_store")]


def driver(run_dir: Path, stage: Path, uri: str) -> tuple[EventForwarder, Tracker]:
    """A driver that runs the stage, and what it tells MLflow."""
    shipping = Tracker(Destination(uri=uri), run_dir)
    shipping.start(RUN, parent=None, params={}, tags={})
    screen = Screen(Console(quiet=True))
    live = Live(run_dir, stage, "pretrain", Metrics(), say=screen.note)
    return EventForwarder(stage, RUN, live, screen, shipping), shipping


def test_incidents_are_in_mlflow_whichever_driver_sent_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = begun(tmp_path, "pretrain")
    # Neither an incident of another stage, nor of this one before it was done again, is its own.
    incidents.append(tmp_path, replace(KILLED, id="finetune-1", stage="finetune"))
    incidents.append(tmp_path, replace(KILLED, time=BEGAN - 1000, lost_steps=7))

    with socket.create_server(("127.0.0.1", 0)) as closing:
        nobody = f"http://127.0.0.1:{closing.getsockname()[1]}"
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 1.0)
    first, unheard = driver(tmp_path, stage, nobody)
    first.note(replace(KILLED, recovered=False, lost_steps=0, seconds={}))
    first.note(KILLED)
    assert unheard.close() > 0
    # A driver that was killed has put one more down, and sent nothing.
    incidents.append(tmp_path, replace(KILLED, id="pretrain-2", time=BEGAN + 60))

    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 300.0)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    last, shipping = driver(tmp_path, stage, store)
    last.note(replace(KILLED, id="pretrain-1", time=BEGAN + 90, cause="node", lost_steps=2))
    assert shipping.close() == 0
    assert shipping.refused == []
    client = MlflowClient(tracking_uri=store)
    [run] = client.search_runs(["0", "1"])
    assert run.data.metrics == {
        "incidents.killed": 2,
        "incidents.node": 1,
        "incidents.lost_steps": 2 * KILLED.lost_steps + 2,
        "incidents.downtime_seconds": pytest.approx(3 * KILLED.downtime),
    }
    copy = Path(client.download_artifacts(run.info.run_id, incidents.FILE))
    assert copy.read_text() == (tmp_path / incidents.FILE).read_text()
