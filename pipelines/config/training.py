"""Recipes: pretraining, fine-tuning, and what they have in common."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from convnextv2.recipe.duration import epochs, steps
from pipelines.config.data import AugmentConfig, DataConfig
from pipelines.config.section import Interval, Length, Positive, Section, Share, Warmup


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
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and the backward pass; bf16 keeps fp32 masters."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, too; it is evaluated beside them."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 10
    """Steps in a row that may be left out because their loss or gradient is not finite."""
    compile: bool = False
    """Put the encoder through torch.compile: minutes at the start, faster steps."""
    weights: Path | None = None
    """Start from these: any file or folder that `convnextv2 weights inspect` reads, of the model's
    size and stem. docs/training.md says what is taken over."""
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
    keep_last: Positive = 2
    """So many of the last are kept,"""
    keep_every: Interval | None = None
    """and one of every so long,"""
    keep_best: str | None = None
    """and the one with the best loss, accuracy, val_top1, val_top1_ema, or with data.multi_label
    val_map or val_map_ema."""
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
    scratch_baseline: bool = False
    """Train a second model from scratch with the same recipe, as the control."""
    label_smoothing: Share = 0.1
    drop_path: Share = 0.0
    trainable: Literal["all", "head"] = "all"
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

    k: Positive = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour counts exp(cosine / temperature)."""
    weights: Path | None = None
    """Whose features they are, without pretrain: any file that `weights inspect` reads."""
    batch_size: Positive = 100
