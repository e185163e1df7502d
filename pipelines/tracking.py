"""MLflow, off the step path: a parent run per pipeline, a child run per stage attempt.

The only file that imports MLflow. The driver's thread ships what stages measured; training never
waits for it and no error of it reaches training. Operations are kept in order until the server
took them; what is left when the driver ends lies in `tracking-unsent.jsonl` and goes first the
next time. Runs have names of our own until the server has given them ids.
"""

import json
import logging
import os
import shlex
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from pipelines.metrics import Line

UNSENT = "tracking-unsent.jsonl"
RUN_IDS = "tracking-runs.json"
IDLE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
CLOSE_SECONDS = 20.0
NOT_METRICS = {"kind", "step", "time"}
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

Operation = dict[str, Any]
log = logging.getLogger(__name__)


class Tracker:
    """Ships operations to an MLflow server or sqlite file in a thread of its own."""

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        self._uri, self._experiment, self._folder = uri, experiment, folder
        self._queue: deque[Operation] = deque(_load_lines(folder / UNSENT))
        self._known: dict[str, dict[str, str]] = _load_json(folder / RUN_IDS)
        self._run_ids = self._known.setdefault(uri, {})
        self._closing = threading.Event()
        self._client: Any = None
        self._thread = threading.Thread(target=self._ship_all, daemon=True)
        self._thread.start()

    def start(
        self, run: str, *, parent: str | None, params: dict[str, Any], tags: dict[str, str]
    ) -> None:
        """Open a run under a name of ours; opening one that exists makes it active again."""
        self._put(op="start", run=run, parent=parent, params=flatten(params), tags=tags)

    def run_id(self, run: str) -> str | None:
        """The server's id of a run; None while it has not answered."""
        return self._run_ids.get(run)

    def points(self, run: str, lines: list[Line]) -> None:
        """Log the numbers of spool lines at their steps."""
        metrics = [
            [name, float(value), int(line["time"] * 1000), line["step"]]
            for line in lines
            for name, value in line.items()
            if name not in NOT_METRICS and isinstance(value, int | float)
        ]
        if metrics:
            self._put(op="metrics", run=run, metrics=metrics)

    def artifact(self, run: str, path: Path) -> None:
        self._put(op="artifact", run=run, path=str(path))

    def tag(self, run: str, name: str, value: str) -> None:
        self._put(op="tag", run=run, name=name, value=value)

    def end(self, run: str, status: str) -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self._put(op="end", run=run, status=status, time=int(time.time() * 1000))

    def close(self) -> int:
        """Send what can be sent in a while; returns how many operations wait for next time."""
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        rest = list(self._queue)
        path = self._folder / UNSENT
        path.unlink(missing_ok=True)
        if rest:
            path.write_text("".join(json.dumps(operation) + "\n" for operation in rest))
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
                log.warning("MLflow at %s did not take %s: %s", self._uri, self._queue[0], error)
                if not _is_refusal(error):
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
                client.log_artifact(run_id, operation["path"])
            case "tag":
                client.set_tag(run_id, operation["name"], operation["value"])
            case "end":
                client.set_terminated(run_id, operation["status"], operation["time"])

    def _ship_start(self, client: Any, operation: Operation) -> None:
        from mlflow.entities import Param

        run = operation["run"]
        if run in self._run_ids:
            try:
                client.update_run(self._run_ids[run], status="RUNNING")
                return
            except Exception as error:
                if not _is_refusal(error):
                    raise
                # It was deleted at the server: a new run takes the name.
        tags = {"mlflow.runName": run, **operation["tags"]}
        if operation["parent"]:
            tags["mlflow.parentRunId"] = self._run_ids[operation["parent"]]
        created = client.create_run(self._experiment_id(client), tags=tags)
        params = [Param(name, value) for name, value in operation["params"].items()]
        for first in range(0, len(params), 100):
            client.log_batch(created.info.run_id, params=params[first : first + 100])
        self._run_ids[run] = created.info.run_id
        (self._folder / RUN_IDS).write_text(json.dumps(self._known))

    def _experiment_id(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        local = self._uri.startswith("sqlite:")
        location = (self._folder / "mlartifacts").resolve().as_uri() if local else None
        return str(client.create_experiment(self._experiment, artifact_location=location))

    def _connected(self) -> Any:
        if self._client is None:
            # The defaults (7 retries of 120 s) would keep a driver from ending for a quarter hour.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self._uri)
        return self._client


def open_hint(uri: str) -> str:
    """How a person opens what was tracked: an address, or the command that serves it."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters with dotted names."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:500]
    return flat


def _is_refusal(error: Exception) -> bool:
    """Whether asking again is in vain; such an operation must not hold up those behind it."""
    if isinstance(error, FileNotFoundError | KeyError):  # The artifact is gone; an unknown run.
        return True
    return getattr(error, "error_code", None) in REFUSALS


def _load_lines(path: Path) -> list[Operation]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _load_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content
