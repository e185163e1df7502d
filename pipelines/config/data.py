"""The images: where they are, how they are stored, and what is seen of them in training."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.config.section import Fraction, Positive, Section


class WriteConfig(Section):
    """How images are stored in .beton files."""

    mode: Literal["raw", "jpg", "smart", "proportion"] = "jpg"
    """Pixels, JPEG, or FFCV's mixtures of both. What is not RGB of 8 bits is stored as pixels."""
    bits: Literal[8, 16] | None = None
    """Bits of a value. By default 8 for RGB, whatever the files have, and for other channels what
    the files have."""
    max_resolution: Positive | None = None
    """Longest side in pixels; larger images are shrunk."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of images that are encoded again. JPEGs that are small enough stay as they are."""
    smart_threshold: Positive | None = None
    """Mode smart: images of more raw bytes than this become JPEGs."""
    compress_probability: Fraction = 0.5
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
    image_column: str | None = None
    """Column of parquet files or lists with the images; by default the one that fits."""
    label_column: str | None = None
    """Column of parquet files or lists with the labels; by default the one that fits."""
    multi_label: bool = False
    """An image may be of several classes, or of none, as a list says (docs/data.md). Training is by
    binary cross entropy, evaluation by mean average precision (mAP)."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training images that becomes the validation split, by a hash of the names. By
    default the source's own split, or a tenth where it has none."""
    classes: Path | None = None
    """A text file with the classes to keep, one per line (the 1K synsets inside the 22K)."""
    max_images: Positive | None = None
    """Keep at most this many images of each split."""
    write: WriteConfig = WriteConfig()
    num_workers: Positive = 1
    """Decoding threads per worker."""
    shuffle: Literal["random", "block-random"] = "random"
    """block-random reads whole pages of 8 MB, for disks that are slow at random access."""
    window_blocks: Positive = 128
    """block-random: number of pages whose images are shuffled together."""
    cache: Path | None = None
    """Folder on each node's own disk that shards are copied to while training runs."""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Most that the cache may take, in 10**9 bytes; shards used longest ago are removed first. By
    default the whole disk."""


class AugmentConfig(Section):
    """Random view of a training image."""

    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)
    """Share of the area a crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    interpolation: Literal["bicubic", "area"] = "bicubic"
    """Pillow's antialiased bicubic, or OpenCV's INTER_AREA, which is FFCV's own."""
    decode: Literal["reduced", "exact", "full"] = "reduced"
    """How much of a JPEG is decoded (docs/data.md). reduced: what the crop needs, at a smaller
    scale where the crop is at least twice the output. exact: what it needs, at full scale. full:
    all of it."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Strength of brightness, contrast and saturation; 0 is none. Not beside rand_augment."""
    rand_augment: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Magnitude of RandAugment's two operations (timm's increasing set); 0 is none."""
    rand_augment_std: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of that magnitude."""
    random_erasing: Fraction = 0.0
    """Probability that a rectangle is replaced by noise."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0 is none. With cutmix, each image gets one of the two."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0 is none."""
