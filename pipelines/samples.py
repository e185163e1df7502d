"""Which samples of a folder of shards a recipe trains on, and in which order."""

from pathlib import Path

import numpy as np

from convnextv2.data.manifest import read_manifest
from convnextv2.data.order import GlobalOrder, few_labels
from convnextv2.data.shards import Indices, Shards, open_shards
from pipelines.config import DataConfig, FinetuneConfig, TrainConfig


def training_samples(folder: Path, recipe: TrainConfig, seed: int) -> Indices | int:
    """The samples, cut down to `train_images` and `labels_per_class` by the seed.

    All of them are given as their number: 14 million need no list.

    Raises:
        ValueError: When there are fewer than asked for, or less than one global batch.
    """
    total = read_manifest(folder).samples
    samples: Indices | int = total
    if recipe.train_images is not None:
        if recipe.train_images > total:
            raise ValueError(
                f"train_images {recipe.train_images} is more than the {total} images of {folder}; "
                f"{total} would work"
            )
        chosen = np.random.default_rng(seed).permutation(total)[: recipe.train_images]
        samples = np.sort(chosen).astype(np.uint64)
    if isinstance(recipe, FinetuneConfig) and recipe.labels_per_class is not None:
        labels = _shards(folder).labels()
        among = np.arange(total, dtype=np.uint64) if isinstance(samples, int) else samples
        samples = few_labels(labels, among, recipe.labels_per_class, seed)
    if count(samples) < recipe.global_batch_size:
        raise ValueError(
            f"global_batch_size {recipe.global_batch_size} is more than the {count(samples)} "
            f"training images of {folder}; at most {count(samples)} would work"
        )
    return samples


def count(samples: Indices | int) -> int:
    """How many samples there are."""
    return samples if isinstance(samples, int) else len(samples)


def training_order(folder: Path, recipe: TrainConfig, data: DataConfig, seed: int) -> GlobalOrder:
    """The order in which a recipe sees its samples; raises ValueError as `training_samples`."""
    block_random = data.order == "block-random"
    return GlobalOrder(
        training_samples(folder, recipe, seed),
        recipe.global_batch_size,
        seed,
        blocks=_shards(folder).blocks() if block_random else None,
        window_blocks=data.window_blocks,
    )


def _shards(folder: Path) -> Shards:
    return open_shards(folder, read_manifest(folder))
