"""What fields of a configuration say against each other, with values that would go together."""

from collections.abc import Iterator

from cluster.batch_layout import BatchLayout
from cluster.engine.zero_config import find_problems
from convnextv2.recipe.duration import Duration, steps
from convnextv2.recipe.layer_decay import GROUPED_DEPTHS
from convnextv2.sizes import DECODER_UNITS, nearest_multiples, size_of
from pipelines.config import (
    DataConfig,
    FinetuneConfig,
    IntermediateConfig,
    ModelConfig,
    PipelineConfig,
    PretrainConfig,
    TrainConfig,
)


def find_conflicts(config: PipelineConfig) -> list[str]:
    """All of them, each beginning with the dotted name of a field."""
    cluster = config.cluster
    problems = [*_geometry(config.model), *_zero(config)]
    for name, train in config.recipes().items():
        try:
            BatchLayout(train.global_batch_size, train.micro_batch_size, cluster.num_workers)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        data = train.data if isinstance(train, IntermediateConfig) else config.data
        found = [*_training(train, data), *_augmentation(train, cluster.num_workers)]
        if isinstance(train, PretrainConfig):
            found += _pretraining(train)
        if isinstance(train, FinetuneConfig):
            found += _fine_tuning(train, config.model)
        problems += [f"{name}.{problem}" for problem in found]
    return [*problems, *_stages(config), *_pixels(config)]


def _zero(config: PipelineConfig) -> list[str]:
    """Settings of ZeRO against each other, and against the precision of every recipe."""
    cluster = config.cluster
    problems = [
        f"cluster.zero.{problem}"
        for precision in {recipe.dtype: None for recipe in config.recipes().values()}
        for problem in find_problems(
            cluster.zero,
            use_gpu=cluster.use_gpu,
            precision=precision,
            world_size=cluster.num_workers,
        )
    ]
    return list(dict.fromkeys(problems))


def _stages(config: PipelineConfig) -> Iterator[str]:
    """Sections that make no sense beside, or without, each other."""
    if config.pretrain is None:
        for name in ("linear_probe", "knn"):
            section = getattr(config, name)
            if section is not None and section.weights is None:
                yield (
                    f"{name}: looks at a pretrained encoder, and pretrain is not set; "
                    f"{name}.weights=FILE would work"
                )
        if config.intermediate is None:
            if config.finetune is None and config.linear_probe is None and config.knn is None:
                yield "finetune: neither pretrain nor finetune is set; there is nothing to train"
            elif (train := config.finetune) and train.scratch_baseline and train.weights is None:
                yield "finetune.scratch_baseline: without pretrain, finetune is that itself"
    if config.linear_probe is not None and config.linear_probe.trainable != "head":
        yield "linear_probe.trainable: a probe trains the head alone; set head, or use finetune"
    for name, recipe in config.recipes().items():
        if name != "finetune" and isinstance(recipe, FinetuneConfig) and recipe.scratch_baseline:
            yield f"{name}.scratch_baseline: only finetune has a baseline from scratch"
    yield from _two_starts(config)


def _two_starts(config: PipelineConfig) -> Iterator[str]:
    """Weights of a stage that gets others from the stage before it."""
    for name, section in config.sections().items():
        after_intermediate = name == "finetune" and config.intermediate is not None
        earlier = "intermediate" if after_intermediate else "pretrain"
        if name == earlier or getattr(section, "weights", None) is None:
            continue
        if getattr(config, earlier) is None:
            continue
        yield (
            f"{name}.weights: it starts from what {earlier} trains already; set {earlier}=null, "
            f"or give them to {earlier}.weights"
        )


def _pixels(config: PipelineConfig) -> Iterator[str]:
    """What is for RGB of 8 bits, where images are something else."""
    channels = config.model.in_channels
    collections = {"data": config.data}
    if config.intermediate is not None:
        collections["intermediate.data"] = config.intermediate.data
    for prefix, data in collections.items():
        if (channels, data.write.bits or 8) != (3, 8):
            images = f"model.in_channels is {channels}" if channels != 3 else "write.bits is 16"
            yield from find_colour_conflicts(config, prefix, images)


def find_colour_conflicts(config: PipelineConfig, prefix: str, images: str) -> Iterator[str]:
    """What is for RGB of 8 bits among the settings of a collection and of those who train on it.

    `prefix` is its section; `images` says why its images are something else.
    """
    data = config.data
    readers = {
        name: train
        for name, train in config.recipes().items()
        if isinstance(train, IntermediateConfig) == (prefix != "data")
    }
    if prefix != "data":
        assert config.intermediate is not None
        data = config.intermediate.data
    if data.write.mode in ("smart", "proportion"):
        yield (
            f"{prefix}.write.mode: {data.write.mode} makes JPEGs of RGB of 8 bits, and "
            f"{images}; raw would work"
        )
    for name, train in readers.items():
        yield from (f"{name}.{problem}" for problem in changes_of_colours(train, images))


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


def _geometry(model: ModelConfig) -> list[str]:
    """What is wrong with the geometry; a patch that would work fits the image, too."""
    stride, patch, image = 8 * model.stem_stride, model.patch_size, model.image_size
    if patch % stride:
        wrong = (
            f"model.patch_size: {patch} is no multiple of the total stride {stride} "
            "(8 x stem_stride)"
        )
        fitting = [size for size in range(stride, image + 1, stride) if image % size == 0]
        if fitting:
            close = sorted(sorted(fitting, key=lambda size: abs(size - patch))[:2])
            return [f"{wrong}; {' or '.join(map(str, close))} would work"]
        below = max(stride, patch // stride * stride)
        return [
            f"{wrong}; {below} would work with model.image_size {nearest_multiples(image, below)}"
        ]
    if image % patch:
        return [
            f"model.image_size: {image} is no multiple of model.patch_size {patch}; "
            f"{nearest_multiples(image, patch)} would work"
        ]
    return []


def _decoder(pretrain: PretrainConfig) -> list[str]:
    unit, dim = DECODER_UNITS[pretrain.decoder], pretrain.decoder_dim
    if dim % unit == 0:
        return []
    return [
        f"decoder_dim: {dim} is no multiple of {unit}, as decoder {pretrain.decoder!r} "
        f"needs; {nearest_multiples(dim, unit)} would work"
    ]
