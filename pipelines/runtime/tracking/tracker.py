"""Ships operations to MLflow in a thread of the driver's. The only file that imports MLflow.

Training never waits for it and no error of it reaches training. Operations are kept in order until
the server has accepted them; what is left when the driver ends is written to
`tracking-unsent.jsonl` and sent first the next time. Until the server has given a run its id, it is
known by a name of ours.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convnextv2.durable import atomically, write_json
from pipelines.runtime.events import Measured
from pipelines.runtime.tracking.destination import DATABASE, Destination
from pipelines.runtime.tracking.moved_store import bring_artifacts_home

UNSENT = "tracking-unsent.jsonl"
RUN_IDS = "tracking-runs.json"
IDLE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
CLOSE_SECONDS = 20.0
PARENT = "mlflow.parentRunId"
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

Operation = dict[str, Any]
log = logging.getLogger(__name__)


class Tracker:
    """Ships operations to an MLflow server or sqlite file in a thread of its own.

    `refused` has the server's answers to operations that it will never accept.
    """

    def __init__(self, destination: Destination, folder: Path) -> None:
        self._to, self._folder = destination, folder
        self._queue: deque[Operation] = deque(_load_lines(folder / UNSENT))
        self._known = _known_runs(folder)
        self._run_ids = self._known.setdefault(destination.name, {})
        self._closing = threading.Event()
        self._client: Any = None
        self.refused: list[str] = []
        self._thread = threading.Thread(target=self._ship_all, daemon=True)
        self._thread.start()

    def start(
        self, run: str, *, parent: str | None, params: Mapping[str, object], tags: dict[str, str]
    ) -> None:
        """Open a run under a name of ours; one that exists goes on, with this parent."""
        self._put(op="start", run=run, parent=parent, params=flatten(params), tags=tags)

    def run_id(self, run: str) -> str | None:
        """The server's id of a run; None while it has not answered."""
        return self._run_ids.get(run)

    def points(self, run: str, measured: Sequence[Measured]) -> None:
        """Log the metrics of events at their steps."""
        metrics = [
            [name, float(value), int(event.time * 1000), event.step]
            for event in measured
            for name, value in event.values.items()
        ]
        if metrics:
            self._put(op="metrics", run=run, metrics=metrics)

    def results(self, run: str, values: Mapping[str, float]) -> None:
        """Log final numbers, which belong to no step."""
        now = int(time.time() * 1000)
        if values:
            metrics = [[name, float(value), now, 0] for name, value in values.items()]
            self._put(op="metrics", run=run, metrics=metrics)

    def artifact(self, run: str, path: Path) -> None:
        # Relative to the run folder, which may be another one when it is sent.
        self._put(op="artifact", run=run, path=os.path.relpath(path, self._folder))

    def tag(self, run: str, name: str, value: str) -> None:
        self._put(op="tag", run=run, name=name, value=value)

    def end(self, run: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self._put(op="end", run=run, status=status, time=int(time.time() * 1000))

    def close(self) -> int:
        """Send what can be sent within CLOSE_SECONDS; returns how many operations are left over."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        rest = list(self._queue)
        path = self._folder / UNSENT
        if rest:
            with atomically(path) as partial:
                partial.write_text("".join(json.dumps(operation) + "\n" for operation in rest))
        else:
            path.unlink(missing_ok=True)
        return len(rest)

    def _put(self, **operation: Any) -> None:
        self._queue.append(operation)

    def _ship_all(self) -> None:
        pause = IDLE_SECONDS
        while True:
            if not self._queue:
                if self._closing.wait(IDLE_SECONDS) and not self._queue:
                    return
                continue
            try:
                self._ship(self._queue[0])
            except Exception as error:
                log.warning("MLflow at %s did not take %s: %s", self._to.uri, self._queue[0], error)
                if _is_refusal(error):
                    self.refused.append(str(error))
                else:
                    if self._closing.wait(pause):
                        return
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    continue
            self._queue.popleft()
            pause = IDLE_SECONDS

    def _ship(self, operation: Operation) -> None:
        client, run = self._connected(), operation["run"]
        if operation["op"] == "start":
            self._ship_start(client, operation)
            return
        run_id = self._run_ids[run]
        match operation["op"]:
            case "metrics":
                from mlflow.entities import Metric

                metrics = [Metric(*values) for values in operation["metrics"]]
                for first in range(0, len(metrics), 1000):
                    client.log_batch(run_id, metrics=metrics[first : first + 1000])
            case "artifact":
                client.log_artifact(run_id, str(self._folder / operation["path"]))
            case "tag":
                client.set_tag(run_id, operation["name"], operation["value"])
            case "end":
                client.set_terminated(run_id, operation["status"], operation["time"])

    def _ship_start(self, client: Any, operation: Operation) -> None:
        run, tags = operation["run"], operation["tags"]
        if operation["parent"]:
            tags = {**tags, PARENT: self._run_ids[operation["parent"]]}
        if run in self._run_ids:
            try:
                client.update_run(self._run_ids[run], status="RUNNING")
                for name, value in tags.items():
                    client.set_tag(self._run_ids[run], name, value)
                return
            except Exception as error:
                if not _is_refusal(error):
                    raise
                # It was deleted at the server: a new run takes the name.
        self._create(client, operation, {"mlflow.runName": run, **tags})

    def _create(self, client: Any, operation: Operation, tags: dict[str, str]) -> None:
        from mlflow.entities import Param

        created = client.create_run(self._experiment_id(client), tags=tags)
        params = [Param(name, value) for name, value in operation["params"].items()]
        for first in range(0, len(params), 100):
            client.log_batch(created.info.run_id, params=params[first : first + 100])
        self._run_ids[operation["run"]] = created.info.run_id
        _remember(self._folder, self._known)

    def _experiment_id(self, client: Any) -> str:
        if self._to.experiment_id is not None:
            return str(client.get_experiment(self._to.experiment_id).experiment_id)
        found = client.get_experiment_by_name(self._to.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._to.artifacts is None else self._to.artifacts.as_uri()
        return str(client.create_experiment(self._to.experiment, artifact_location=location))

    def _connected(self) -> Any:
        if self._client is None:
            # The defaults (7 retries of 120 s) would keep a driver alive for a quarter of an hour.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            from mlflow import MlflowClient

            if self._to.own and self._to.database and self._to.artifacts:
                bring_artifacts_home(self._to.database, self._to.artifacts)
            client = MlflowClient(tracking_uri=self._to.uri)
            self._end_the_dead(client)
            self._client = client
        return self._client

    def _end_the_dead(self, client: Any) -> None:
        """Close runs that a killed driver left open: only one driver works in a run folder."""
        ours = set(self._run_ids.values())
        if not ours:
            return
        running = "attributes.status = 'RUNNING'"
        for run in client.search_runs([self._experiment_id(client)], running):
            if run.info.run_id in ours:
                client.set_terminated(run.info.run_id, "KILLED")


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:500]
    return flat


def _is_refusal(error: Exception) -> bool:
    """Whether the operation can never succeed; it must not hold up those after it."""
    if isinstance(error, FileNotFoundError | KeyError):  # The artifact is gone; an unknown run.
        return True
    return getattr(error, "error_code", None) in REFUSALS


def _load_lines(path: Path) -> list[Operation]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _known_runs(folder: Path) -> dict[str, dict[str, str]]:
    """Ids of runs by store and by our names. A copied folder knows those of its own store only:
    those at a server are the runs of the folder it was copied from.
    """
    path = folder / RUN_IDS
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    known: dict[str, dict[str, str]] = content["stores"]
    copied = content["folder_inode"] != folder.stat().st_ino
    return {DATABASE: known.get(DATABASE, {})} if copied else known


def _remember(folder: Path, known: dict[str, dict[str, str]]) -> None:
    write_json(folder / RUN_IDS, {"folder_inode": folder.stat().st_ino, "stores": known})
