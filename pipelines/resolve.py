"""From a preset and `a.b=c` overrides to a checked configuration, all problems on one screen."""

import difflib
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.topology import Topology
from convnextv2.sizes import DECODER_UNITS, nearest_multiples
from pipelines.config import ModelConfig, PipelineConfig, PretrainConfig, Section, TrainConfig


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem per line."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def resolve(preset: PipelineConfig, overrides: Sequence[str]) -> PipelineConfig:
    """Apply `overrides` (values as in YAML) and check everything.

    Raises:
        ConfigError: Naming every problem at once.
    """
    base = preset.model_dump()
    merged, problems = base, []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            problems.append(f"--set {override}: expected key=value, for example seed=1")
            continue
        merged = _with_value(merged, key.split("."), _parse(text))
    config, wrong = _validate(merged, base)
    problems += wrong + find_conflicts(config)
    if problems:
        raise ConfigError(problems)
    return config


def find_conflicts(config: PipelineConfig) -> list[str]:
    """Arithmetic between fields that does not work out, with values that would."""
    problems = _misfits(config.model) + _misfit_decoder(config.pretrain)
    if config.pretrain.augment.mixup or config.pretrain.augment.cutmix:
        problems.append("pretrain.augment: FCMAE reconstructs images; set mixup and cutmix to 0")
    for name, train in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        try:
            Topology(train.global_batch_size, train.micro_batch_size, config.cluster.num_workers)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        problems += [
            f"{name}.{problem}" for problem in _misfit_augment(train, config.cluster.num_workers)
        ]
        if train.warmup_epochs > train.epochs:
            problems.append(
                f"{name}.warmup_epochs: {train.warmup_epochs:g} is longer than the {train.epochs} "
                f"epochs of training"
            )
    return problems


def _misfit_augment(train: TrainConfig, num_workers: int) -> list[str]:
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


def _misfits(model: ModelConfig) -> list[str]:
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


def _misfit_decoder(pretrain: PretrainConfig) -> list[str]:
    unit, dim = DECODER_UNITS[pretrain.decoder], pretrain.decoder_dim
    if dim % unit == 0:
        return []
    return [
        f"pretrain.decoder_dim: {dim} is no multiple of {unit}, as decoder {pretrain.decoder!r} "
        f"needs; {nearest_multiples(dim, unit)} would work"
    ]


def _with_value(tree: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of `tree` with one leaf changed; unknown branches are made, validation names them."""
    head, *rest = path
    if not rest:
        return {**tree, head: value}
    below = tree.get(head)
    return {**tree, head: _with_value(below if isinstance(below, dict) else {}, rest, value)}


def _parse(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        # YAML 1.1 takes 1e-3 for text; people mean a number, unless they put it in quotes.
        try:
            return float(text)
        except ValueError:
            return value
    return value


def _validate(merged: dict[str, Any], base: dict[str, Any]) -> tuple[PipelineConfig, list[str]]:
    """Validate; where a value is wrong the preset's own stands in, so that all checks can run."""
    try:
        return PipelineConfig.model_validate(merged), []
    except ValidationError as error:
        problems, mended = [], merged
        for item in error.errors():
            path = [str(part) for part in item["loc"]]
            known = _known_prefix(path)
            problems.append(_describe(item, path))
            mended = _restore(mended, base, known or path)
        config, more = _validate(mended, base)
        return config, problems + more


def _known_prefix(path: list[str]) -> list[str]:
    """The part of an error's path that names fields (not tuple positions or union branches)."""
    model: Any = PipelineConfig
    known = []
    for part in path:
        if not (isinstance(model, type) and issubclass(model, Section)):
            break
        known.append(part)
        if part not in model.model_fields:
            break
        model = model.model_fields[part].annotation
    return known


def _restore(tree: dict[str, Any], base: dict[str, Any], path: list[str]) -> dict[str, Any]:
    head, *rest = path
    if head not in base:
        return {name: value for name, value in tree.items() if name != head}
    below, original = tree.get(head), base[head]
    if rest and isinstance(below, dict) and isinstance(original, dict):
        return {**tree, head: _restore(below, original, rest)}
    return {**tree, head: original}


def _describe(item: Any, path: list[str]) -> str:
    dotted = ".".join(_known_prefix(path))
    if item["type"] == "extra_forbidden":
        model: Any = PipelineConfig
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        prefix = ".".join(path[:-1])
        names = [f"{prefix}.{name}" if prefix else name for name in model.model_fields]
        return f"unknown key {dotted!r}{nearest(dotted, names)}"
    words = item["msg"].removeprefix("Value error, ")
    return f"{dotted}: {words[0].lower()}{words[1:]}, got {item['input']!r}"


def nearest(name: str, names: list[str]) -> str:
    """Words that name the closest of `names`, or all of them."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
