"""A run folder that was copied or moved, with a real store: it goes on in itself alone."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils

from pipelines.config import TrackingConfig
from pipelines.runtime.tracking import Destination, Tracker, tracker
from tests.pipelines.graph.kitchen import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_own_store")]


def log_a_page(folder: Path, run: str, content: str) -> None:
    """What an invocation does in its run folder, in short."""
    # Invocations are processes; MLflow remembers in a process where a run's artifacts are.
    utils._artifact_repos_cache.clear()
    (folder / "page.html").write_text(content)
    shipping = Tracker(Destination.of(TrackingConfig(), folder), folder)
    shipping.start(run, parent=None, params={}, tags={})
    shipping.artifact(run, folder / "page.html")
    assert shipping.close() == 0
    assert shipping.refused == []


def pages(folder: Path) -> dict[str, str]:
    """Where the artifacts of all runs are by the store in `folder`, and what they say."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    found = {}
    for run in client.search_runs(["1"]):
        assert run.info.artifact_uri.startswith(f"{folder.as_uri()}/")
        page = client.download_artifacts(run.info.run_id, "page.html")
        found[run.info.run_name] = Path(page).read_text()
    return found


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_it_goes_on_in_itself_alone(how: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "the second"
    first.mkdir()
    log_a_page(first, "one", "first")
    (shutil.copytree if how == "copied" else shutil.move)(first, second)
    before = snapshot(first)
    log_a_page(second, "two", "second")
    log_a_page(second, "one", "first, again")
    assert pages(second) == {"one": "first, again", "two": "second"}
    assert snapshot(first) == before
    assert first.exists() == (how == "copied")


def test_unsent_artifacts_are_those_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (first / "page.html").write_text("in the first")
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shipping = Tracker(Destination.of(TrackingConfig(), first), first)
    shipping.start("one", parent=None, params={}, tags={})
    shipping.artifact("one", first / "page.html")
    assert shipping.close() == 2
    shutil.copytree(first, second)
    shutil.rmtree(first)
    (second / "page.html").write_text("in the second")

    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 300.0)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shipping = Tracker(Destination.of(TrackingConfig(), second), second)
    assert shipping.close() == 0
    assert pages(second) == {"one": "in the second"}


def test_a_copy_leaves_the_runs_at_a_server_alone(tmp_path: Path) -> None:
    """The server knows one run for both folders: the copy begins others."""
    server = Destination(uri=f"sqlite:///{tmp_path}/server.db")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    for folder in (first, first, second):
        shipping = Tracker(server, folder)
        shipping.start("one", parent=None, params={}, tags={})
        assert shipping.close() == 0
        if not second.exists():
            shutil.copytree(first, second)
    client = MlflowClient(tracking_uri=server.uri)
    assert len(client.search_runs(["1"])) == 2
