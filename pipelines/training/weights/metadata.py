"""What the weights of a training stage say about themselves."""

from convnextv2.data.loading.views import CenterView
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.weights import Evaluation, Metadata
from pipelines.config import FinetuneConfig
from pipelines.training.data.transforms import evaluation_view, image_size_of
from pipelines.training.job import TrainJob


def metadata_of(job: TrainJob) -> Metadata:
    """Class names, of a classifier, and how the pipeline evaluates what `job` trains.

    That is as of the training: settings of `evaluate` are in no training stage's key, since a
    changed crop must not train anew. They may change these notes, never the tensors.
    """
    size = image_size_of(job.recipe, job.model)
    view = evaluation_view(size, job.evaluate)
    classifies = isinstance(job.recipe, FinetuneConfig)
    return Metadata(
        classes=read_manifest(job.shards).classes if classifies else (),
        evaluation=Evaluation(
            image_size=size,
            crop=view.crop if isinstance(view, CenterView) else None,
            interpolation=view.interpolation,
            mean=job.normalization.mean,
            std=job.normalization.std,
            bits=job.normalization.bits,
        ),
    )
