"""The metrics of the tasks there are. One that is added needs no entry here but its own use."""

from pipelines.results.metrics import MetricSpec

LOSS = MetricSpec(name="loss", title="loss", unit="", direction="lower")
ACCURACY = MetricSpec(name="accuracy", title="accuracy on training batches")
TOP1 = MetricSpec(name="top1", title="top-1")
TOP5 = MetricSpec(name="top5", title="top-5", charted=False)
MAP = MetricSpec(name="map", title="mAP")
VALIDATION_LOSS = LOSS.model_copy(update={"charted": False})
