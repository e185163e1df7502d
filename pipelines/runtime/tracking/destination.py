"""Where runs are tracked: the configuration says it, else MLflow's own environment variables, else
it is a sqlite file in the run folder.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.config import TrackingConfig

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
EXPERIMENT = "convnextv2"
SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A store, and an experiment in it by name, or by id where it is given.

    `own` is a store in the run folder, which may be copied and moved.
    """

    uri: str
    experiment: str = EXPERIMENT
    experiment_id: str | None = None
    own: bool = False

    @classmethod
    def of(cls, tracking: TrackingConfig, run_dir: Path) -> Self:
        """As configured, else MLFLOW_TRACKING_URI; and MLFLOW_EXPERIMENT_NAME, else
        MLFLOW_EXPERIMENT_ID, which means something only to the store that gave it.
        """
        uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        experiment = tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if not uri:
            uri = f"{SQLITE}{run_dir.resolve() / DATABASE}"
            return cls(uri=uri, experiment=experiment or EXPERIMENT, own=True)
        number = None if experiment else os.environ.get("MLFLOW_EXPERIMENT_ID")
        return cls(uri=uri, experiment=experiment or EXPERIMENT, experiment_id=number)

    @property
    def name(self) -> str:
        """Its name in the run folder's files; that of a store inside survives a move."""
        return DATABASE if self.own else self.uri

    @property
    def database(self) -> Path | None:
        """The file, for a store that is one."""
        path = self.uri.removeprefix(SQLITE)
        return None if path == self.uri else Path(path).resolve()

    @property
    def artifacts(self) -> Path | None:
        """The folder beside the file; MLflow's default depends on the working directory."""
        return None if self.database is None else self.database.with_name(ARTIFACTS)


def open_hint(uri: str) -> str:
    """How a person opens what was tracked: an address, or the command that serves it."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
