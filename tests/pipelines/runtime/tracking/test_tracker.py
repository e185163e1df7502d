"""MLflow on a real sqlite store; and absent, silent or refusing, without training noticing."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.runtime.events import Point
from pipelines.runtime.tracking import RUN_IDS, UNSENT, Destination, Tracker, flatten, tracker

PARAMS = {
    "model": {"size": "atto", "depths": [2, 2, 6, 2]},
    "many": {f"p{i}": i for i in range(150)},
}
TAGS = {"git.commit": "abc", "stage": "pretrain"}


def test_nested_settings_get_dotted_names() -> None:
    tree = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2], "long": "x" * 900}
    assert flatten(tree) == {"a.b.c": "1", "a.d": "None", "e": "[1, 2]", "long": "x" * 500}


def points(steps: range) -> list[Point]:
    return [
        Point(step=step, time=100.0 + step, values={"loss": step / 4, "lr": 1}) for step in steps
    ]


def log_everything(tracker: Tracker, artifact: Path) -> None:
    """A pipeline's run with one stage that failed."""
    tracker.start("pipeline", parent=None, params={"seed": 1}, tags=TAGS)
    tracker.start("pretrain-1", parent="pipeline", params=PARAMS, tags=TAGS)
    tracker.points("pretrain-1", points(range(600)))
    tracker.points("pretrain-1", [])
    tracker.artifact("pretrain-1", artifact)
    tracker.tag("pretrain-1", "restarts", "2")
    tracker.end("pretrain-1", "FAILED")
    tracker.end("pipeline", "FINISHED")


pytestmark = pytest.mark.usefixtures("_own_store")
OPERATIONS = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text("<p>report")
    return tmp_path


def track(store: str, experiment: str, folder: Path) -> Tracker:
    return Tracker(Destination(uri=store, experiment=experiment), folder)


def runs_in(store: str, experiment: str) -> dict[str, Any]:
    """The experiment's runs by name; several of one name are told apart by a dash."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    runs: dict[str, Any] = {}
    for run in client.search_runs([found.experiment_id], order_by=["attributes.start_time"]):
        name = run.data.tags["mlflow.runName"]
        runs[name if name not in runs else f"{name}-"] = run
    return runs


def assert_all_arrived(store: str, experiment: str) -> None:
    from mlflow import MlflowClient

    runs = runs_in(store, experiment)
    assert set(runs) == {"pipeline", "pretrain-1"}
    parent, child = runs["pipeline"], runs["pretrain-1"]
    assert (parent.info.status, child.info.status) == ("FINISHED", "FAILED")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags.items() >= {**TAGS, "restarts": "2"}.items()
    assert parent.data.params == {"seed": "1"}
    assert child.data.params == flatten(PARAMS)
    client = MlflowClient(tracking_uri=store)
    history = client.get_metric_history(child.info.run_id, "loss")
    assert {point.step: (point.value, point.timestamp) for point in history} == {
        step: (step / 4, 100_000 + 1000 * step) for step in range(600)
    }
    assert set(child.data.metrics) == {"loss", "lr"}
    copy = client.download_artifacts(child.info.run_id, "page.html")
    assert Path(copy).read_text() == "<p>report"


@pytest.mark.slow
def test_everything_arrives_and_a_later_driver_goes_on(store: str, folder: Path) -> None:
    shipping = track(store, "arrives", folder)
    log_everything(shipping, folder / "page.html")
    assert shipping.close() == 0
    assert_all_arrived(store, "arrives")
    assert not (folder / UNSENT).exists()

    # The next invocation has a run of its own, which the run of the stage moves to.
    second = track(store, "arrives", folder)
    second.start("pipeline-2", parent=None, params={"seed": 2}, tags={})
    second.start("pretrain-1", parent="pipeline-2", params=PARAMS, tags={"git.commit": "def"})
    second.points("pretrain-1", points(range(600, 601)))
    second.results("pipeline-2", {"finetune.top1": 0.5})
    second.end("pretrain-1", "KILLED")
    assert second.close() == 0
    assert second.refused == []
    runs = runs_in(store, "arrives")
    assert set(runs) == {"pipeline", "pipeline-2", "pretrain-1"}
    parent, child = runs["pipeline-2"], runs["pretrain-1"]
    assert (parent.info.status, child.info.status) == ("RUNNING", "KILLED")
    assert parent.data.params == {"seed": "2"}
    assert parent.data.metrics == {"finetune.top1": 0.5}
    assert runs["pipeline"].data.params == {"seed": "1"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["git.commit"] == "def"
    assert child.data.metrics["loss"] == 150.0


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port: int = closing.getsockname()[1]
    return port


@pytest.mark.slow
def test_what_no_server_took_goes_first_the_next_time(
    store: str, folder: Path, closed_port: int
) -> None:
    shipping = track(f"http://127.0.0.1:{closed_port}", "waits", folder)
    log_everything(shipping, folder / "page.html")
    assert shipping.close() == OPERATIONS
    unsent = [json.loads(line) for line in (folder / UNSENT).read_text().splitlines()]
    assert [operation["op"] for operation in unsent] == [
        "start", "start", "metrics", "artifact", "tag", "end", "end",
    ]  # fmt: skip

    second = track(f"http://127.0.0.1:{closed_port}", "waits", folder)
    second.tag("pipeline", "late", "yes")
    assert second.close() == OPERATIONS + 1

    third = track(store, "waits", folder)
    assert third.close() == 0
    assert_all_arrived(store, "waits")
    assert runs_in(store, "waits")["pipeline"].data.tags["late"] == "yes"
    assert not (folder / UNSENT).exists()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.slow
def test_a_server_that_hangs_holds_up_nobody(
    folder: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 1.0)
    shipping = track(f"http://127.0.0.1:{silent_port}", "hangs", folder)
    log_everything(shipping, folder / "page.html")
    assert shipping.close() == OPERATIONS
    assert len((folder / UNSENT).read_text().splitlines()) == OPERATIONS


@pytest.mark.slow
def test_what_can_never_arrive_does_not_hold_up_the_rest(store: str, folder: Path) -> None:
    shipping = track(store, "refusals", folder)
    shipping.start("pipeline", parent=None, params={"seed": 1}, tags={})
    shipping.artifact("pipeline", folder / "superseded" / "gone.html")
    shipping.tag("never started", "a", "b")
    shipping.tag("pipeline", "after", "all")
    assert shipping.close() == 0
    assert runs_in(store, "refusals")["pipeline"].data.tags["after"] == "all"
    missing, unknown = shipping.refused
    assert "gone.html" in missing
    assert "never started" in unknown


@pytest.mark.slow
def test_what_a_killed_driver_left_open_is_closed(store: str, folder: Path) -> None:
    killed = track(store, "killed", folder)
    for run in ("pipeline-1", "pretrain"):
        killed.start(run, parent=None, params={}, tags={})
    assert killed.close() == 0
    other = folder / "other run folder"
    other.mkdir()
    elsewhere = track(store, "killed", other)
    elsewhere.start("theirs", parent=None, params={}, tags={})
    assert elsewhere.close() == 0

    second = track(store, "killed", folder)
    second.start("pipeline-2", parent=None, params={}, tags={})
    second.start("pretrain", parent="pipeline-2", params={}, tags={})
    assert second.close() == 0
    status = {name: run.info.status for name, run in runs_in(store, "killed").items()}
    assert status == {
        "pipeline-1": "KILLED",
        "pretrain": "RUNNING",
        "pipeline-2": "RUNNING",
        "theirs": "RUNNING",
    }


@pytest.mark.slow
def test_ids_of_another_server_and_of_deleted_runs_are_not_used(store: str, folder: Path) -> None:
    from mlflow import MlflowClient

    elsewhere = {"http://elsewhere": {"pipeline": "0" * 32}}
    remembered = {"folder_inode": folder.stat().st_ino, "stores": elsewhere}
    (folder / RUN_IDS).write_text(json.dumps(remembered))
    first = track(store, "ids", folder)
    first.start("pipeline", parent=None, params={}, tags={})
    assert first.close() == 0
    known = json.loads((folder / RUN_IDS).read_text())["stores"]
    run_id = known[store]["pipeline"]
    assert known == {**elsewhere, store: {"pipeline": run_id}}
    assert runs_in(store, "ids")["pipeline"].info.run_id == run_id

    MlflowClient(tracking_uri=store).delete_run(run_id)
    second = track(store, "ids", folder)
    second.start("pipeline", parent=None, params={}, tags={})
    second.end("pipeline", "FINISHED")
    assert second.close() == 0
    assert runs_in(store, "ids")["pipeline"].info.run_id != run_id


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_operations_are_shipped_while_training_goes_on(store: str, folder: Path) -> None:
    shipping = track(store, "meanwhile", folder)
    shipping.start("pipeline", parent=None, params={}, tags={})
    wait_until((folder / RUN_IDS).exists)
    shipping.points("pipeline", points(range(3)))
    wait_until(lambda: runs_in(store, "meanwhile")["pipeline"].data.metrics.get("loss") == 0.5)
    assert shipping.close() == 0


@pytest.mark.slow
def test_an_experiment_may_be_named_by_its_number(store: str, folder: Path) -> None:
    from mlflow import MlflowClient

    number = MlflowClient(tracking_uri=store).create_experiment("numbered")
    shipping = Tracker(Destination(uri=store, experiment_id=number), folder)
    shipping.start("pipeline", parent=None, params={}, tags={})
    assert shipping.close() == 0
    assert set(runs_in(store, "numbered")) == {"pipeline"}

    wrong = Tracker(Destination(uri=store, experiment_id="98765"), folder)
    wrong.start("another", parent=None, params={}, tags={})
    assert wrong.close() == 0
    assert "98765" in wrong.refused[0]
