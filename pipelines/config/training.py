"""Recipes: pretraining, fine-tuning, and what they have in common."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from convnextv2.recipe.duration import epochs, steps
from pipelines.config.data import AugmentConfig, DataConfig
from pipelines.config.section import (
    Fraction,
    Interval,
    IntervalOrAuto,
    Length,
    Positive,
    Section,
    Warmup,
)
from pipelines.results.known import ACCURACY, LOSS, MAP, TOP1, TOP5, VALIDATION_LOSS
from pipelines.results.metrics import MetricSpec


class TrainConfig(Section):
    """What pretraining and fine-tuning have in common."""

    duration: Length
    """Like 800 epochs, 5000 steps or 12800000 images; a bare number means epochs."""
    global_batch_size: Positive
    """Images per optimizer step, over all workers."""
    micro_batch_size: Positive
    """Images per worker and forward pass. Gradients are accumulated over as many passes as
    make up the global batch."""
    base_lr: Annotated[float, Field(gt=0)]
    """Peak learning rate for a global batch of 256 images, scaled linearly with the batch."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate that the cosine ends at; it is not scaled."""
    warmup: Warmup = epochs(0)
    """How long the learning rate rises linearly from 0. 5% is of the whole duration, a bare number
    means epochs."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    grad_clip: Annotated[float, Field(ge=0)] = 0.0
    """Gradients of a larger norm are scaled down to it; 0 clips nothing."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and the backward pass; bf16 keeps fp32 masters."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """Of matrix products in fp32. high lets a GPU round their inputs to TF32 (10 bits of mantissa),
    several times faster; the result changes."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of an exponential moving average (EMA) of the weights, which is evaluated
    and written beside them. By default there is none."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 10
    """Training stops after so many steps in a row that are skipped because their loss or gradient
    is not finite."""
    compile: bool = False
    """Put the encoder through torch.compile: minutes at the start, other rounding. Not in ZeRO
    stage 3. `make gpu-check` says whether it is faster."""
    weights: Path | None = None
    """Start from these: any file or folder that `convnextv2 weights inspect` reads, of the model's
    size and stem. docs/training.md says what is taken over."""
    augment: AugmentConfig = AugmentConfig()
    train_images: Positive | None = None
    """Train on this many images, chosen by the seed; by default on all."""
    activation_checkpointing: tuple[Annotated[int, Field(ge=0, le=3)], ...] = ()
    """Stages (0 to 3) whose blocks are computed a second time in the backward pass: less memory,
    more time, the same result. All of them: [0, 1, 2, 3]."""
    spike_factor: Annotated[float, Field(gt=1)] | None = None
    """A loss of more than so many times the median of the last 100 steps is a spike: training goes
    back to a checkpoint before it, and leaves out the steps around it (docs/recovery.md). By
    default spikes are not looked for."""
    spike_window: Interval = steps(100)
    """How many steps before a spike are left out, and as many from it on; a bare number means
    steps."""
    checkpoint_every: IntervalOrAuto = steps(500)
    """Time between checkpoints, like 500 steps, 1 epoch or 5%; a bare number means steps. auto: by
    Young and Daly, from the time that a checkpoint takes and the failures there are
    (docs/recovery.md). There is always one at the end."""
    asynchronous_checkpoints: bool = True
    """Training waits for a copy of its state in memory only, and goes on while that is written."""
    keep_last: Positive = 2
    """How many of the newest checkpoints are kept."""
    keep_every: Interval | None = None
    """Checkpoints at multiples of this are kept as well, like 10 epochs."""
    keep_best: str | None = None
    """The checkpoint that is best by this metric is kept as well: loss, accuracy, and with
    evaluate_every val_top1, val_top5, val_loss (with data.multi_label also val_map), or of the EMA
    val_top1_ema and so on."""
    evaluate_every: Interval | None = None
    """Fine-tuning only: time between evaluations on the validation split, of the weights and of
    their EMA. By default there is only the one after training."""

    def training_metrics(self) -> tuple[MetricSpec, ...]:
        """What the task measures on every batch."""
        return (LOSS,)

    def validation_metrics(self, data: DataConfig) -> tuple[MetricSpec, ...]:
        """What validation measures on the images of `data`; the first one counts most."""
        return ()

    def measured(self, data: DataConfig) -> dict[str, MetricSpec]:
        """Everything that is noted with a checkpoint, by name: what keep_best may be."""
        found = [*self.training_metrics()]
        if self.evaluate_every is not None:
            validated = [spec.during_training() for spec in self.validation_metrics(data)]
            found += validated
            if self.ema_decay is not None:
                found += [spec.of_ema() for spec in validated]
        return {spec.name: spec for spec in found}


class PretrainConfig(TrainConfig):
    """FCMAE pretraining."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of the patches that is hidden."""
    decoder: Literal["convnext", "unet", "unet-noskip", "transformer"] = "convnext"
    decoder_dim: Positive = 512
    """Channels of the decoder (of a UNet at its coarsest scale)."""
    decoder_depth: Positive = 1
    """Blocks of the decoder (of every scale of a UNet)."""
    norm_pix_loss: bool = True
    """The target is each patch normalised by its own mean and deviation."""
    backend: Literal["auto", "gather", "spconv", "masked-dense"] = "gather"
    """How the encoder computes visible patches alone; the results are the same."""
    grn_scope: Literal["image", "batch"] = "image"
    """GRN's norm is taken over each image, as in the paper, or over the batch, as in its code."""
    decay_exempt: Literal["all-but-1d", "all-but-1d-and-grn"] = "all-but-1d"
    """Which parameters have no weight decay. The paper's pretraining decays GRN and the mask token,
    its fine-tuning does not."""


class FinetuneConfig(TrainConfig):
    """Supervised fine-tuning of the pretrained encoder."""

    labels_per_class: Positive | None = None
    """Train on this many images of each class; by default on all."""
    scratch_baseline: bool = False
    """Train a second model from scratch with the same recipe, to compare with."""
    label_smoothing: Fraction = 0.1
    drop_path: Fraction = 0.0
    trainable: Literal["all", "head"] = "all"
    """What is trained: everything, or the head on a frozen encoder (a linear probe)."""
    image_size: Positive | None = None
    """Side in pixels, here and in evaluation; as in pretraining by default."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The rate of a layer is multiplied by this once for every layer between it and the head."""
    layer_decay_groups: Literal["single", "group"] = "single"
    """What counts as a layer: single, every block; group, three blocks of the third stage and each
    other stage (depths 3, 3, 27, 3 only; the paper's Base and Large)."""
    head_init_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the head's initial weights. 0.001 in the paper; from scratch that costs accuracy,
    so with scratch_baseline 1 is fair."""
    decay_exempt: Literal["all-but-1d", "all-but-1d-and-grn"] = "all-but-1d-and-grn"

    def training_metrics(self) -> tuple[MetricSpec, ...]:
        return LOSS, ACCURACY

    def validation_metrics(self, data: DataConfig) -> tuple[MetricSpec, ...]:
        precision = (MAP,) if data.multi_label else ()
        return *precision, TOP1, TOP5, VALIDATION_LOSS


class IntermediateConfig(FinetuneConfig):
    """Fine-tuning on another, larger collection (ImageNet-22K) before `finetune`."""

    data: DataConfig = DataConfig()
    """That collection."""


class KnnConfig(Section):
    """k nearest neighbours of the pretrained encoder's features: no training at all."""

    k: Positive = 20
    """How many neighbours vote."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """A neighbour's vote counts exp(cosine / temperature)."""
    weights: Path | None = None
    """Whose features they are, without pretrain: any file that `weights inspect` reads."""
    batch_size: Positive = 100
