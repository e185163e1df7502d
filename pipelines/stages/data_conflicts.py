"""What a configuration asks of its images, against what they are: known before they are written.

`pipelines.config.checks` is about settings among each other; here are those that only the images
show to be wrong, with values that would work.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from convnextv2.data.collection import DataError, Split
from convnextv2.data.labels.census import Census
from convnextv2.data.labels.classes import match_classes
from convnextv2.data.order.global_order import GlobalOrder
from pipelines.config import DataConfig, PipelineConfig, TrainConfig
from pipelines.graph.outline import EVALUATIONS, outline
from pipelines.stages.finetune import SECTIONS
from pipelines.training.job import Plan
from pipelines.training.samples import find_shortages, most_samples

RECIPES = {"pretrain": "pretrain", **SECTIONS}


def find_data_conflicts(
    config: PipelineConfig,
    written: str,
    wanted: set[str],
    source: Path,
    images: Mapping[Split, Census],
) -> list[str]:
    """All that is wrong for the `wanted` stages that read what the stage `written` writes."""
    stages = outline(config)
    readers = [
        name
        for name, after in stages.items()
        if name in wanted and written in after and name != "report"
    ]
    problems = [
        f"{RECIPES[name]}.{problem}"
        for name in readers
        if name in RECIPES
        for problem in _training(getattr(config, RECIPES[name]), images["train"])
    ]
    if "knn" in readers:
        problems += _neighbours(config, images["train"])
    problems += _labels(config, written, readers, source, images)
    if any(name != "pretrain" for name in readers):
        problems += _several_labels(config, written, readers, images)
    # The control has the recipe of what it is compared with, and so its problems.
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
    written: str,
    readers: list[str],
    source: Path,
    images: Mapping[Split, Census],
) -> Iterator[str]:
    """Labels that are missing, and classes of the validation images that are never learnt."""
    data = section_of(written)
    train, val = images["train"], images["val"]
    learning = [name for name in readers if name in SECTIONS or name == "knn"]
    judging = [name for name in readers if _is_judged(config, name)]
    if learning and train.unlabelled:
        some = train.unlabelled < train.images
        other = f"{data}.classes leaves them out" if some else "give images with classes"
        yield (
            f"{data}: {_without_labels(train, 'training', source)}, which {', '.join(learning)} "
            f"would need; convnextv2 pretrain works, or {other}"
        )
    elif judging and val.unlabelled:
        yield (
            f"{data}: {_without_labels(val, 'validation', source)}, which {', '.join(judging)} "
            f"would need; {data}.val_fraction=0.1 takes some of the training images instead"
        )
    elif judging:
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
    config: PipelineConfig, written: str, readers: list[str], images: Mapping[Split, Census]
) -> Iterator[str]:
    """Images of one label and of several, and what is not defined for those."""
    wanted = collection_of(config, written).multi_label
    strange = [
        split for split, each in images.items() if each.classes and each.multi_label != wanted
    ]
    have = "have one label each; false" if wanted else "may have several labels; true"
    for split in strange:
        yield f"{section_of(written)}.multi_label: the {split} images {have} would work"
    if strange or not wanted:
        return
    if "knn" in readers:
        yield "knn: neighbours vote for one class of an image; leave knn out"
    for name in dict.fromkeys(RECIPES[name] for name in readers if name in SECTIONS):
        if getattr(config, name).labels_per_class is not None:
            yield (
                f"{name}.labels_per_class: images are of several classes; {name}.train_images "
                "would train on few of them"
            )


def collection_of(config: PipelineConfig, written: str) -> DataConfig:
    """The images that a stage writes."""
    if written == "write":
        return config.data
    assert config.intermediate is not None
    return config.intermediate.data


def section_of(written: str) -> str:
    """Section of the configuration with the images that a stage writes."""
    return "data" if written == "write" else "intermediate.data"


def _is_judged(config: PipelineConfig, name: str) -> bool:
    """Whether the stage `name` looks at labels of validation images."""
    if name in SECTIONS:
        return getattr(config, SECTIONS[name]).evaluate_every is not None
    return name in EVALUATIONS or name == "knn"


def _without_labels(images: Census, split: str, source: Path) -> str:
    if images.unlabelled == images.images:
        return f"the {split} images of {source} have no labels"
    return f"{images.unlabelled:,} of the {images.images:,} {split} images of {source} have none"
