"""Where runs are tracked: the configuration says it, else MLflow's own environment variables, else
it is a sqlite file in the run folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.config import TrackingConfig

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
EXPERIMENT = "convnextv2"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A store, and an experiment in it by name, or by id where it has no name.

    `own_folder` is the run folder, for a store that lies in it: it may be copied and moved.
    """

    uri: str
    experiment: str = EXPERIMENT
    experiment_id: str | None = None
    own_folder: Path | None = None

    @classmethod
    def of(cls, tracking: TrackingConfig, run_dir: Path) -> Self:
        """As configured, else MLFLOW_TRACKING_URI; and MLFLOW_EXPERIMENT_NAME, else
        MLFLOW_EXPERIMENT_ID, which means something only to the store that gave it.
        """
        uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        experiment = tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        if not uri:
            folder = run_dir.resolve()
            return cls(
                uri=f"sqlite:///{folder / DATABASE}",
                experiment=experiment or EXPERIMENT,
                own_folder=folder,
            )
        number = None if experiment else os.environ.get("MLFLOW_EXPERIMENT_ID")
        return cls(uri=uri, experiment=experiment or EXPERIMENT, experiment_id=number)

    @property
    def name(self) -> str:
        """What the run folder remembers it by: its own store is the same wherever it lies."""
        return self.uri if self.own_folder is None else DATABASE


def open_hint(uri: str) -> str:
    """How a person opens what was tracked: an address, or the command that serves it."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
