"""What a configuration asks of its images, against what they are: known before they are written.

`pipelines.config.checks` is about settings among each other; here are those that only the images
show to be wrong, with values that would work.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from convnextv2.data.collection import DataError, Split
from convnextv2.data.labels.census import Census
from convnextv2.data.labels.classes import match_classes
from convnextv2.data.order.global_order import GlobalOrder
from pipelines.config import DataConfig, FinetuneConfig, PipelineConfig, TrainConfig
from pipelines.graph.kinds import KINDS, StageKind
from pipelines.graph.outline import outline
from pipelines.training.data.samples import find_shortages, most_samples
from pipelines.training.job import Plan


def find_data_conflicts(
    config: PipelineConfig,
    written: str,
    wanted: Collection[str],
    source: Path,
    images: Mapping[Split, Census],
) -> list[str]:
    """All that is wrong for the `wanted` stages that read what the stage `written` writes."""
    readers = [
        KINDS[name] for name in outline(config) if name in wanted and KINDS[name].images == written
    ]
    data = KINDS[written].section
    problems: list[str] = []
    for kind in readers:
        recipe = kind.settings(config)
        if isinstance(recipe, TrainConfig):
            found = _training(recipe, images["train"])
            problems += (f"{kind.section}.{problem}" for problem in found)
    if KINDS["knn"] in readers:
        problems += _neighbours(config, images["train"])
    problems += _labels(config, data, readers, source, images)
    if any(kind.needs_labels for kind in readers):
        several = collection_of(config, written).multi_label
        problems += _several_labels(config, data, several, readers, images)
    # A baseline has the recipe of the stage it is compared with, and so the same problems.
    return list(dict.fromkeys(problems))


def _training(recipe: TrainConfig, images: Census) -> Iterator[str]:
    shortages = find_shortages(recipe, images)
    yield from shortages
    if shortages:
        return
    order = GlobalOrder(most_samples(recipe, images), recipe.global_batch_size, seed=0)
    try:
        Plan.of(recipe, order)
    except ValueError as error:
        yield f"warmup: {error}; {recipe.duration} would be all of it"


def _neighbours(config: PipelineConfig, images: Census) -> Iterator[str]:
    assert config.knn is not None
    if config.knn.k > images.images:
        yield (
            f"knn.k: {config.knn.k} is more than the {images.images} training "
            f"images; {images.images} would work"
        )


def _labels(
    config: PipelineConfig,
    data: str,
    readers: list[StageKind],
    source: Path,
    images: Mapping[Split, Census],
) -> Iterator[str]:
    """Labels that are missing, and classes of the validation images that are never learnt.

    `data` is the name of the section with the images.
    """
    train, val = images["train"], images["val"]
    need_train = [kind.name for kind in readers if "train" in kind.needs_labels]
    need_val = [kind.name for kind in readers if _uses_val_labels(config, kind)]
    if need_train and train.unlabelled:
        some = train.unlabelled < train.images
        other = f"{data}.classes leaves them out" if some else "give images with classes"
        yield (
            f"{data}: {_without_labels(train, 'training', source)}, which {', '.join(need_train)} "
            f"would need; convnextv2 pretrain works, or {other}"
        )
    elif need_val and val.unlabelled:
        yield (
            f"{data}: {_without_labels(val, 'validation', source)}, which {', '.join(need_val)} "
            f"would need; {data}.val_fraction=0.1 takes some of the training images instead"
        )
    elif need_val:
        try:
            match_classes(
                val.classes,
                train.classes,
                of="the validation images",
                among="the training images",
            )
        except DataError as error:
            yield (
                f"{data}: {error}\n  {data}.classes with classes that both have would work, or "
                f"{data}.val_fraction=0.1, which takes some of the training images instead"
            )


def _several_labels(
    config: PipelineConfig,
    data: str,
    multi_label: bool,
    readers: list[StageKind],
    images: Mapping[Split, Census],
) -> Iterator[str]:
    """Images of one label, and of several, and what is not defined for those.

    `multi_label` is which of the two the settings say they are.
    """
    mismatched = [
        split for split, each in images.items() if each.classes and each.multi_label != multi_label
    ]
    have = "have one label each; false" if multi_label else "may have several labels; true"
    for split in mismatched:
        yield f"{data}.multi_label: the {split} images {have} would work"
    if mismatched or not multi_label:
        return
    if KINDS["knn"] in readers:
        yield "knn: neighbours vote for one class of an image; leave knn out"
    for name, recipe in {kind.section: kind.settings(config) for kind in readers}.items():
        if isinstance(recipe, FinetuneConfig) and recipe.labels_per_class is not None:
            yield (
                f"{name}.labels_per_class: images are of several classes; {name}.train_images "
                "would train on few of them"
            )


def collection_of(config: PipelineConfig, written: str) -> DataConfig:
    """The images that a stage writes."""
    data = KINDS[written].settings(config)
    assert isinstance(data, DataConfig)
    return data


def _uses_val_labels(config: PipelineConfig, kind: StageKind) -> bool:
    """Whether a stage looks at labels of validation images."""
    recipe = kind.settings(config)
    in_between = isinstance(recipe, TrainConfig) and recipe.evaluate_every is not None
    return in_between or "val" in kind.needs_labels


def _without_labels(images: Census, split: str, source: Path) -> str:
    if images.unlabelled == images.images:
        return f"the {split} images of {source} have no labels"
    return f"{images.unlabelled:,} of the {images.images:,} {split} images of {source} have none"
