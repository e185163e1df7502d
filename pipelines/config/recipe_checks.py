"""What the fields of one training recipe say against each other, the data and the model."""

import math
from collections.abc import Iterator

from convnextv2.recipe.duration import Duration, steps
from convnextv2.recipe.layer_decay import GROUPED_DEPTHS
from convnextv2.sizes import DECODER_UNITS, nearest_multiples, size_of
from pipelines.config import DataConfig, FinetuneConfig, ModelConfig, PretrainConfig, TrainConfig


def find_recipe_conflicts(
    train: TrainConfig, data: DataConfig, model: ModelConfig, num_workers: int
) -> list[str]:
    """All of them, each beginning with the dotted name of a field of the recipe.

    Args:
        train: The recipe.
        data: The collection it trains on.
        model: What it trains.
        num_workers: Workers that share a global batch.
    """
    problems = [*_training(train, data), *_augmentation(train, num_workers)]
    if isinstance(train, PretrainConfig):
        problems += _pretraining(train)
    if isinstance(train, FinetuneConfig):
        problems += _fine_tuning(train, model)
    return problems


def changes_of_colours(train: TrainConfig, images: str) -> Iterator[str]:
    """Augmentations of RGB of 8 bits; `images` says why the images are something else."""
    for field in ("color_jitter", "rand_augment"):
        if getattr(train.augment, field):
            yield (f"augment.{field}: changes colours of RGB of 8 bits, and {images}; 0 would work")


def _training(train: TrainConfig, data: DataConfig) -> Iterator[str]:
    """Durations, what is kept, averages."""
    warmup, duration = (
        _comparable(length, train.global_batch_size) for length in (train.warmup, train.duration)
    )
    if train.duration.unit == "%":
        yield f"duration: {train.duration} of what? Epochs, steps or images would work"
    if warmup.unit == duration.unit and warmup.amount > duration.amount:
        yield f"warmup: {train.warmup} is longer than the {train.duration} of training"
    window = _comparable(train.spike_window, train.global_batch_size)
    longest = {"%": 50.0, duration.unit: duration.amount}.get(window.unit, math.inf)
    if train.spike_factor is not None and window.amount >= longest:
        yield (
            f"spike_window: {train.spike_window} before a spike and as many from it on leave "
            f"nothing of the {train.duration} of training; 1% would work"
        )
    known = list(train.measured(data))
    if train.keep_best is not None and train.keep_best not in known:
        yield (
            f"keep_best: {train.keep_best!r} is not measured in this training; "
            f"{', '.join(known[:-1])}{' or ' if known[1:] else ''}{known[-1]} would work"
            f"{_missing(train, data)}"
        )


def _comparable(duration: Duration, global_batch_size: int) -> Duration:
    """Images as steps."""
    if duration.unit != "images":
        return duration
    return Duration(round(duration.amount / global_batch_size), "steps")


def _missing(train: TrainConfig, data: DataConfig) -> str:
    """What has to be set for the metric that was asked for; "" where nothing would help."""
    settings = {
        "evaluate_every": train.evaluate_every,
        "ema_decay": train.ema_decay,
        "data.multi_label": data.multi_label,
    }
    unset = {name for name, value in settings.items() if not value}

    def would_be_measured(names: set[str]) -> bool:
        values = {"evaluate_every": steps(1), "ema_decay": 0.5}
        fuller = train.model_copy(update={name: values[name] for name in names & values.keys()})
        several = data.multi_label or "data.multi_label" in names
        return train.keep_best in fuller.measured(data.model_copy(update={"multi_label": several}))

    if not would_be_measured(unset):
        return ""
    needed = [name for name in settings if name in unset and not would_be_measured(unset - {name})]
    return f", or set {' and '.join(needed)}"


def _pretraining(pretrain: PretrainConfig) -> Iterator[str]:
    if pretrain.augment.mixup or pretrain.augment.cutmix:
        yield "augment: FCMAE reconstructs images; set mixup and cutmix to 0"
    if pretrain.evaluate_every is not None:
        yield "evaluate_every: pretraining has no labels to be evaluated by; leave it out"
    yield from _decoder(pretrain)


def _fine_tuning(train: FinetuneConfig, model: ModelConfig) -> Iterator[str]:
    depths, stride = size_of(model.size).depths, 8 * model.stem_stride
    if train.layer_decay_groups == "group" and depths != GROUPED_DEPTHS:
        yield (
            f"layer_decay_groups: group is defined for depths 3, 3, 27, 3, and {model.size} has "
            f"{', '.join(map(str, depths))}; single would work"
        )
    if train.image_size is not None and train.image_size % stride:
        yield (
            f"image_size: {train.image_size} is no multiple of the total stride {stride} "
            f"(8 x model.stem_stride); {nearest_multiples(train.image_size, stride)} would work"
        )
    if train.trainable == "head":
        for name, off in (("layer_decay", 1.0), ("drop_path", 0.0)):
            if getattr(train, name) != off:
                yield f"{name}: only the head is trained, without the layers it is for; set {off:g}"


def _augmentation(train: TrainConfig, num_workers: int) -> list[str]:
    augment = train.augment
    problems = [
        f"augment.{name}: expected 0 < low <= high, got {low}, {high}"
        for name, (low, high) in (
            ("crop_scale", augment.crop_scale),
            ("crop_ratio", augment.crop_ratio),
        )
        if not 0 < low <= high
    ]
    if augment.color_jitter and augment.rand_augment:
        problems.append(
            "augment.color_jitter: RandAugment changes colours already; set color_jitter or "
            "rand_augment to 0"
        )
    if augment.mixup or augment.cutmix:
        if train.micro_batch_size % 2:
            problems.append(
                f"micro_batch_size: mixup and cutmix pair images, {train.micro_batch_size} is odd; "
                f"{train.micro_batch_size + 1} would pair up"
            )
        if train.global_batch_size % (2 * num_workers):
            close = nearest_multiples(train.global_batch_size, 2 * num_workers)
            problems.append(
                f"global_batch_size: mixup and cutmix pair images, {train.global_batch_size} "
                f"leaves {num_workers} workers no whole pairs; {close} would work"
            )
    return problems


def _decoder(pretrain: PretrainConfig) -> list[str]:
    unit, dim = DECODER_UNITS[pretrain.decoder], pretrain.decoder_dim
    if dim % unit == 0:
        return []
    return [
        f"decoder_dim: {dim} is no multiple of {unit}, as decoder {pretrain.decoder!r} "
        f"needs; {nearest_multiples(dim, unit)} would work"
    ]
