"""What the presets for ImageNet are made of: a row of a table of the paper becomes a section."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster.engine.memory import model_states
from convnextv2.memory import Step, activation_bytes, parameter_count
from convnextv2.recipe.duration import Duration, epochs
from convnextv2.recipe.layer_decay import Grouping
from pipelines.config import (
    AugmentConfig,
    DataConfig,
    FinetuneConfig,
    IntermediateConfig,
    KnnConfig,
    ModelConfig,
    PipelineConfig,
    PretrainConfig,
    WriteConfig,
)

PAPER = ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
MASK_RATIO = 0.6
ROOM = 64e9  # Of 80 GB; the rest is for buckets, the average, and what the formula is off by.


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with what is known about it.

    Attributes:
        name: Its name on the command line.
        what: What it trains, in a few words.
        published: The published result to compare with.
        about: Where its constants are from, and where paper and code disagree.
        command: The command line that runs it.
        cost: Time and hardware of a run that was measured.
        build: Makes the configuration.
    """

    name: str
    what: str
    published: str
    about: str
    command: str
    build: Callable[[], PipelineConfig]
    cost: str = "not run yet"


class Row(NamedTuple):
    """The constants of one size, a column of one of the paper's fine-tuning tables."""

    base_lr: float
    weight_decay: float
    layer_decay: float
    grouping: Grouping
    epochs: int
    warmup: int
    smoothing: float
    mixup: float
    cutmix: float
    drop_path: float


def on_gpus(*trained: str) -> str:
    """Options that run a preset on a machine of eight GPUs; `trained` are its recipes' sections."""
    in_bf16 = "".join(f" --set {section}.dtype=bf16" for section in trained)
    return f"--set cluster.num_workers=8 --set cluster.use_gpu=true{in_bf16}"


def imagenet(
    name: str,
    size: str,
    *,
    largest: int = 224,
    pretrain: PretrainConfig | None,
    intermediate: IntermediateConfig | None = None,
    finetune: FinetuneConfig | None = None,
    linear_probe: FinetuneConfig | None = None,
    knn: KnnConfig | None = None,
) -> PipelineConfig:
    """A pipeline on ImageNet-1K; `largest` is the largest image side (pixels) of any stage.

    Up to 224 px, images are stored with a longest side of at most 512 px to save disk space (our
    choice); above, they are stored as they are.
    """
    return PipelineConfig(
        name=name,
        log_every=50,
        data=imagenet_data(max_resolution=512 if largest <= 224 else None),
        model=ModelConfig(size=size, image_size=224, patch_size=32),
        pretrain=pretrain,
        intermediate=intermediate,
        finetune=finetune,
        linear_probe=linear_probe,
        knn=knn,
    )


def imagenet_data(*, max_resolution: int | None, val_fraction: float | None = None) -> DataConfig:
    """Images stored as JPEG; a few unreadable files, as large collections have, are skipped."""
    write = WriteConfig(mode="jpg", max_resolution=max_resolution, max_unreadable=100)
    return DataConfig(num_workers=10, write=write, val_fraction=val_fraction)


def pretraining(size: str, duration: Duration) -> PretrainConfig:
    """The recipe of the paper's Table 8 and the released arguments, equal for all sizes."""
    return PretrainConfig(
        duration=duration,
        global_batch_size=4096,
        micro_batch_size=micro_batch_size(Step(size=size, mask_ratio=MASK_RATIO), 4096),
        base_lr=1.5e-4,
        min_lr=0.0,
        warmup=epochs(40),
        weight_decay=0.05,
        betas=(0.9, 0.95),
        augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=0.5),
        decay_exempt="all-but-1d",
        checkpoint_every="auto",
    )


def fine_tuning(
    size: str,
    row: Row,
    *,
    batch: int,
    ema_decay: float | None,
    image_size: int = 224,
    head_init_scale: float = 0.001,
) -> FinetuneConfig:
    """The recipe of one column of a table, with what all columns have in common."""
    return FinetuneConfig(
        duration=epochs(row.epochs),
        warmup=epochs(row.warmup),
        global_batch_size=batch,
        micro_batch_size=micro_batch_size(Step(size=size, image_size=image_size), batch),
        base_lr=row.base_lr,
        min_lr=1e-6,
        weight_decay=row.weight_decay,
        layer_decay=row.layer_decay,
        layer_decay_groups=row.grouping,
        label_smoothing=row.smoothing,
        drop_path=row.drop_path,
        head_init_scale=head_init_scale,
        ema_decay=ema_decay,
        image_size=None if image_size == 224 else image_size,
        augment=AugmentConfig(
            crop_scale=(0.08, 1.0),
            rand_augment=9.0,
            rand_augment_std=0.5,
            random_erasing=0.25,
            mixup=row.mixup,
            cutmix=row.cutmix,
        ),
        checkpoint_every="auto",
        evaluate_every=Duration(5, "%"),
    )


def micro_batch_size(step: Step, batch: int) -> int:
    """Images at a time on GPUs of 80 GB: what leaves room in fp32 as well, in powers of two.

    By the formula for activations and model states, without an average. Never more than what one of
    eight GPUs gets of the batch.
    """
    in_fp32 = replace(step, value_bytes=4)
    states = model_states(parameter_count(step), stage=1, world_size=8).total
    fitting = (
        number
        for number in (512, 256, 128, 64, 32, 16, 8)
        if activation_bytes(in_fp32, number).total + states <= ROOM
    )
    return min(next(fitting), batch // 8)
