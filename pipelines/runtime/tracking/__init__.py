"""MLflow, off the step path: a run per invocation of a pipeline, in it a run per stage."""

from pipelines.runtime.tracking.destination import Destination, open_hint
from pipelines.runtime.tracking.tracker import RUN_IDS, UNSENT, Tracker, flatten

__all__ = ["RUN_IDS", "UNSENT", "Destination", "Tracker", "flatten", "open_hint"]
