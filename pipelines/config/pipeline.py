"""A whole pipeline: the model, the recipes, evaluation, workers and tracking."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from cluster.batch_layout import group_sizes
from cluster.engine.zero_config import ZeroSettings
from cluster.resilience.watchdog import Limits
from pipelines.config.data import DataConfig
from pipelines.config.section import KINDS, Positive, Section, Size
from pipelines.config.training import (
    FinetuneConfig,
    IntermediateConfig,
    KnnConfig,
    PretrainConfig,
    TrainConfig,
)


class ModelConfig(Section):
    """Geometry of the network."""

    size: Size
    image_size: Positive = 224
    """Side in pixels; a multiple of patch_size."""
    patch_size: Positive = 32
    """Side of a masked patch in pixels; a multiple of 8 x stem_stride."""
    stem_stride: Literal[1, 2, 4] = 4
    """Pixels per site after the first layer; the encoder's total stride is 8 times that."""
    in_channels: Positive = 3
    """Channels of an image. With 3, every image is converted to RGB; any other number is what all
    images must have."""


class EvaluateConfig(Section):
    """Evaluation on the validation split."""

    batch_size: Positive = 100
    crop_mode: Literal["auto", "center", "squash"] = "auto"
    """center: resize to image_size / crop and cut out the centre. squash: resize the whole image to
    a square. auto: squash from 384 px on, else center, as in the paper's evaluation."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Central share of the image that is evaluated, with crop_mode center."""
    interpolation: Literal["bicubic", "area"] = "bicubic"


class Workers(Section):
    """How many workers there may be."""

    min: Positive
    max: Positive


NumWorkers = Annotated[
    Annotated[Positive, Tag(KINDS[0])] | Annotated[Workers, Tag(KINDS[1])],
    Discriminator(lambda value: KINDS[isinstance(value, dict | Workers)]),
]
"""An error is about the kind that was given, not about both."""


class ClusterConfig(Section):
    """Workers. Nothing here changes what is computed, so no stage is redone for it."""

    num_workers: NumWorkers = 1
    """A number, or {min: 2, max: 8}: as many as there is room for, and whose number divides the
    global batch. Lost ones are done without, new ones are taken in."""
    cpus_per_worker: Positive = 1
    use_gpu: bool = False
    zero: ZeroSettings = ZeroSettings()
    cuda_graph: bool = False
    """Record forward and backward pass once and replay them: less work for the host, which is what
    limits small models. docs/gpu.md says what it goes with. Not run on a GPU yet."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Faults of one cause that a stage survives between two checkpoints."""
    divergence_check_every: Annotated[int, Field(ge=0)] = 100
    """Steps between comparisons of the workers' weights, which find silent corruption; there is one
    before every checkpoint, too. 0 never. ZeRO-3 has nothing to compare."""
    max_failed_saves: Positive = 3
    """So many checkpoints in a row that the storage does not take end a stage. Each is tried for a
    minute while training goes on."""
    warm_spare: bool | None = None
    """A second process of each worker that stands by, imports done: a restart takes it, in seconds,
    for about 900 MB of memory each. By default with GPUs only."""
    limits: Limits = Limits()
    """When a worker hangs (s); at least five times what it took before."""
    address: str | None = None
    """Of a running Ray cluster that this machine belongs to: auto, or host:port of the head. By
    default RAY_ADDRESS, and without it a cluster is started here."""
    dashboard_port: Positive | None = None
    """Port of Ray's dashboard when the cluster is started here; none by default."""
    start_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long to wait until the cluster has room for the workers."""

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.max

    @property
    def least_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers.min

    def sizes_for(self, train: TrainConfig) -> list[int]:
        """How many workers can share a recipe's global batch, ascending."""
        batch, micro = train.global_batch_size, train.micro_batch_size
        return group_sizes(batch, micro, self.least_workers, self.most_workers)


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking server. By default MLFLOW_TRACKING_URI, and without it a sqlite file in the run
    folder."""
    experiment: str | None = None
    """Name of the experiment. By default MLFLOW_EXPERIMENT_NAME, then MLFLOW_EXPERIMENT_ID, then
    convnextv2."""


class PipelineConfig(Section):
    """One pipeline: write, pretrain, intermediate, fine-tune, evaluate, probe, report."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10
    """Steps between points on the curves."""
    data: DataConfig = DataConfig()
    model: ModelConfig
    pretrain: PretrainConfig | None
    """Without it, training starts from the `weights` that a stage names, or from random ones."""
    intermediate: IntermediateConfig | None = None
    finetune: FinetuneConfig | None = None
    linear_probe: FinetuneConfig | None = None
    knn: KnnConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    def sections(self) -> dict[str, Section]:
        """The sections that are set, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, Section)}

    def recipes(self) -> dict[str, TrainConfig]:
        """The sections that are recipes of training, by name."""
        sections = self.sections().items()
        return {name: each for name, each in sections if isinstance(each, TrainConfig)}
