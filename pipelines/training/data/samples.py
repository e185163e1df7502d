"""Which samples of a folder of shards a recipe trains on, and in which order."""

from pathlib import Path

import numpy as np

from convnextv2.data.labels.census import Census
from convnextv2.data.order.global_order import GlobalOrder, few_labels
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import Indices, Shards, open_shards
from pipelines.config import DataConfig, FinetuneConfig, TrainConfig


def training_samples(folder: Path, recipe: TrainConfig, seed: int) -> Indices | int:
    """The samples, cut down to `train_images` and `labels_per_class` by the seed.

    Where nothing is cut, the number of samples is returned: a list of 14 million would be waste.

    Raises:
        ValueError: When there are fewer than asked for, or less than one global batch.
    """
    manifest = read_manifest(folder)
    if shortages := find_shortages(recipe, manifest.census):
        raise ValueError("; ".join(shortages))
    total = manifest.samples
    samples: Indices | int = total
    if recipe.train_images is not None:
        chosen = np.random.default_rng(seed).permutation(total)[: recipe.train_images]
        samples = np.sort(chosen).astype(np.uint64)
    if isinstance(recipe, FinetuneConfig) and recipe.labels_per_class is not None:
        labels = _shards(folder).labels()
        among = np.arange(total, dtype=np.uint64) if isinstance(samples, int) else samples
        samples = few_labels(labels, among, recipe.labels_per_class, seed)
    return samples


def find_shortages(recipe: TrainConfig, images: Census) -> list[str]:
    """What a recipe asks for beyond the images there are; each begins with a field's name."""
    problems = []
    if (recipe.train_images or 0) > images.images:
        problems.append(
            f"train_images: {recipe.train_images} is more than the {images.images} training "
            f"images; {images.images} would work"
        )
    per_class = recipe.labels_per_class if isinstance(recipe, FinetuneConfig) else None
    if per_class is not None and any(images.class_counts):
        fewest, name = min(zip(images.class_counts, images.classes, strict=True))
        if fewest < per_class:
            problems.append(
                f"labels_per_class: {per_class} is more than the {fewest} training images of class "
                f"{name}; {fewest} would work"
            )
    there = most_samples(recipe, images)
    if there < recipe.global_batch_size:
        problems.append(
            f"global_batch_size: {recipe.global_batch_size} is more than the {there} training "
            f"images; at most {there} would work"
        )
    return problems


def most_samples(recipe: TrainConfig, images: Census) -> int:
    """How many images a recipe trains on at most; `train_images` may leave fewer of a class."""
    most = min(recipe.train_images or images.images, images.images)
    if isinstance(recipe, FinetuneConfig) and recipe.labels_per_class is not None:
        labelled = sum(min(recipe.labels_per_class, count) for count in images.class_counts)
        most = min(most, labelled)
    return most


def count(samples: Indices | int) -> int:
    """The number of samples, given as a list or as a number."""
    return samples if isinstance(samples, int) else len(samples)


def training_order(folder: Path, recipe: TrainConfig, data: DataConfig, seed: int) -> GlobalOrder:
    """The order in which a recipe sees its samples; raises ValueError as `training_samples`."""
    block_random = data.shuffle == "block-random"
    return GlobalOrder(
        training_samples(folder, recipe, seed),
        recipe.global_batch_size,
        seed,
        blocks=_shards(folder).blocks() if block_random else None,
        window_blocks=data.window_blocks,
    )


def _shards(folder: Path) -> Shards:
    return open_shards(folder, read_manifest(folder))
