"""The typed configuration tree of a pipeline. Presets fill it, `--set a.b=c` changes it.

All problems are found at once and shown on one screen, before Ray or a GPU is touched: unknown
keys with the nearest name, wrong types, and arithmetic that does not work out with values that
would. Nothing heavy is imported here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from cluster.zero import ZeroSettings
from convnextv2.recipe.duration import Duration, Unit, epochs, steps
from convnextv2.sizes import size_of


def _known_size(name: str) -> str:
    size_of(name)
    return name


def _read(bare: Unit) -> Any:
    return PlainValidator(lambda value: Duration.parse(value, bare))


def _some(duration: Duration) -> Duration:
    if not duration.amount:
        raise ValueError("more than nothing is needed")
    return duration


Size = Annotated[str, AfterValidator(_known_size)]
Warmup = Annotated[Duration, _read("epochs"), PlainSerializer(str)]
Length = Annotated[Duration, _read("epochs"), AfterValidator(_some), PlainSerializer(str)]
Interval = Annotated[Duration, _read("steps"), AfterValidator(_some), PlainSerializer(str)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, strict about unknown keys; the text under a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class WriteConfig(Section):
    """How images are stored in .beton files."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = "jpg"
    """Pixels, JPEG, or FFCV's mixtures of both."""
    max_resolution: Positive | None = None
    """Longest side in pixels; larger images are shrunk."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of images that are encoded again; JPEGs that are small enough stay as they are."""
    smart_threshold: Positive | None = None
    """Mode smart: images of more raw bytes than this become JPEGs."""
    compress_probability: Share = 0.5
    """Mode proportion: the share of images that become JPEGs."""
    shard_gb: Annotated[float, Field(gt=0)] = 30.0
    """About how large a .beton file gets, in 10**9 bytes."""
    max_unreadable: Annotated[int, Field(ge=0)] = 0
    """Images that may be skipped because they cannot be decoded; more are an error."""


class DataConfig(Section):
    """The image collection."""

    source: Path | None = None
    """Any layout of docs/data.md, or a folder with train/ and val/ of convnextv2 data write."""
    labels: Path | None = None
    """Label file of ImageNet-1K's validation tar, when it is not beside it."""
    hold_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training images that becomes the validation split, by a hash of the names. By
    default the source's own split, or a tenth where it has none."""
    classes: Path | None = None
    """A text file with the classes to keep, one per line (the 1K synsets inside the 22K)."""
    limit: Positive | None = None
    """Keep so many images of each split."""
    write: WriteConfig = WriteConfig()
    num_workers: Positive = 1
    """Decoding threads per worker."""
    order: Literal["random", "block-random"] = "random"
    """block-random reads whole pages of 8 MB, for disks that are slow at anything else."""
    window_blocks: Positive = 128
    """Pages whose images are mixed among each other, in order block-random."""
    cache: Path | None = None
    """Folder on each node's own disk that shards are copied to while training runs."""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Room the cache may take, in 10**9 bytes; old shards make way. All of the disk by default."""


class ModelConfig(Section):
    """Geometry of the network."""

    size: Size
    image_size: Positive = 224
    """Side in pixels; a multiple of patch_size."""
    patch_size: Positive = 32
    """Side of a masked patch in pixels; a multiple of 8 x stem_stride."""
    stem_stride: Literal[1, 2, 4] = 4


class AugmentConfig(Section):
    """Random view of a training image."""

    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    """Share of the area a crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop."""
    flip: Share = 0.5
    interpolation: Literal["bicubic", "area"] = "bicubic"
    """Pillow's antialiased bicubic, or OpenCV's INTER_AREA, which is FFCV's own."""
    decode: Literal["reduced", "exact", "full"] = "reduced"
    """How much of a JPEG is decoded: what a crop needs, in a smaller scale where the crop is at
    least twice the output ("exact": never in a smaller scale); or all of it. docs/data.md."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of brightness, contrast and saturation; 0 is none. Not beside rand_augment."""
    rand_augment: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Magnitude of RandAugment's two operations (timm's increasing set); 0 is none."""
    rand_augment_std: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of that magnitude."""
    erasing: Share = 0.0
    """Probability of erasing a rectangle with noise."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0 is none. With cutmix, each image gets one of the two."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0 is none."""


class TrainConfig(Section):
    """What pretraining and fine-tuning have in common."""

    duration: Length
    """Like 800 epochs, 5000 steps or 12800000 images; a bare number means epochs."""
    global_batch_size: Positive
    """Images per optimizer step, over all workers."""
    micro_batch_size: Positive
    """Images per worker and forward pass; the rest of its share is accumulated."""
    base_lr: Annotated[float, Field(gt=0)]
    """Per 256 images of global batch (linear scaling)."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup: Warmup = epochs(0)
    """Linear rise of the rate from 0; 5% is of the whole duration, a bare number means epochs."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest gradient norm; 0 leaves gradients alone."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, too; it is evaluated beside them."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 10
    """Steps in a row that may be left out because their loss or gradient is not finite."""
    compile: bool = False
    """Put the encoder through torch.compile: minutes at the start, faster steps."""
    augment: AugmentConfig = AugmentConfig()
    train_images: Positive | None = None
    """Use only so many images of the training set, chosen by the seed."""
    activation_checkpointing: tuple[Annotated[int, Field(ge=0, le=3)], ...] = ()
    """Stages (0 to 3) whose blocks are computed a second time in the backward pass: less memory,
    more time, the same result. All of them: [0, 1, 2, 3]."""
    checkpoint_every: Interval = steps(500)
    """Like 500 steps, 1 epoch or 5%; a bare number means steps. The end always has one."""
    asynchronous_checkpoints: bool = True
    """Write checkpoints behind training, which waits for a copy in memory only."""
    keep_checkpoints: Positive = 2
    """So many of the last are kept,"""
    keep_every: Interval | None = None
    """and one of every so long,"""
    keep_best: str | None = None
    """and the one with the best loss, accuracy, val_top1 or val_top1_ema."""
    evaluate_every: Interval | None = None
    """Fine-tuning: look at the validation split in between, weights and average."""


class PretrainConfig(TrainConfig):
    """FCMAE pretraining."""

    betas: tuple[Share, Share] = (0.9, 0.95)
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    decoder: Literal["convnext", "unet", "unet-noskip", "transformer"] = "convnext"
    decoder_dim: Positive = 512
    """Channels of the decoder (of a UNet at its coarsest scale)."""
    decoder_depth: Positive = 1
    """Blocks of the decoder (of every scale of a UNet)."""
    norm_pix_loss: bool = True
    backend: Literal["auto", "gather", "spconv", "masked-dense"] = "gather"
    grn_scope: Literal["image", "batch"] = "image"
    decay_exempt: Literal["all-but-1d", "all-but-1d-and-grn"] = "all-but-1d"
    """The paper's pretraining decays GRN and the mask token; its fine-tuning does not."""


class FinetuneConfig(TrainConfig):
    """Supervised fine-tuning of the pretrained encoder."""

    labels_per_class: Positive | None = None
    """Train on so many labelled images of each class only."""
    control: bool = False
    """Train a second model from scratch with the same recipe, as the control."""
    label_smoothing: Share = 0.1
    drop_path: Share = 0.0
    train: Literal["all", "head"] = "all"
    """head leaves the encoder as it was pretrained: a linear probe."""
    image_size: Positive | None = None
    """Side in pixels, here and in evaluation; as in pretraining by default."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The rate of a layer is multiplied by this once for every layer between it and the head."""
    layer_decay_groups: Literal["single", "group"] = "single"
    """What counts as a layer: single, every block; group, three blocks of the third stage and each
    other stage (depths 3, 3, 27, 3 only; the paper's Base and Large)."""
    head_init_scale: Annotated[float, Field(gt=0)] = 1.0
    """0.001 in the paper; from scratch that costs accuracy, so a control needs 1."""
    decay_exempt: Literal["all-but-1d", "all-but-1d-and-grn"] = "all-but-1d-and-grn"


class IntermediateConfig(FinetuneConfig):
    """Fine-tuning on another, larger collection (ImageNet-22K) before `finetune`."""

    data: DataConfig = DataConfig()
    """That collection."""


class KnnConfig(Section):
    """k nearest neighbours of the pretrained encoder's features: no training at all."""

    neighbours: Positive = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour counts exp(cosine / temperature)."""
    batch_size: Positive = 100


class EvaluateConfig(Section):
    """Evaluation on the validation split."""

    batch_size: Positive = 100
    crop_mode: Literal["auto", "center", "squash"] = "auto"
    """center: resize to image_size / crop and cut out the centre. squash: the whole image, whatever
    its ratio. auto: squash from 384 px on, as the paper's evaluation."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Central share of the image that is looked at."""
    interpolation: Literal["bicubic", "area"] = "bicubic"


class ClusterConfig(Section):
    """Workers. Nothing here changes what is computed, so no stage is redone for it."""

    num_workers: Positive = 1
    cpus_per_worker: Positive = 1
    use_gpu: bool = False
    zero: ZeroSettings = ZeroSettings()
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps fp32 masters."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts of a worker group before a stage fails."""
    address: str | None = None
    """A running Ray cluster; else RAY_ADDRESS, else one is started here."""
    dashboard_port: Positive | None = None
    """Port of Ray's dashboard when the cluster is started here; none by default."""
    start_timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    """How long to wait until the cluster has room for the workers."""


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking server; a sqlite file in the run folder by default."""
    experiment: str = "convnextv2"


class PipelineConfig(Section):
    """One pipeline: write, pretrain, intermediate, fine-tune, evaluate, probe, report."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10
    """Steps between points on the curves."""
    data: DataConfig = DataConfig()
    model: ModelConfig
    pretrain: PretrainConfig | None
    """None: training starts from random weights."""
    intermediate: IntermediateConfig | None = None
    finetune: FinetuneConfig | None = None
    linear_probe: FinetuneConfig | None = None
    knn: KnnConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
