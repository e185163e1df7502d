"""Which samples of a .beton file a recipe trains on."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.order import Indices, few_labels
from convnextv2.data.write import read_manifest
from pipelines.config import FinetuneConfig, TrainConfig


def training_samples(beton: Path, recipe: TrainConfig, seed: int) -> Indices:
    """Readable samples, cut down to `train_images` and `labels_per_class` by the seed.

    Raises:
        ValueError: When the file holds fewer than asked for, or less than one global batch.
    """
    samples = read_manifest(beton).usable
    if recipe.train_images is not None:
        if recipe.train_images > len(samples):
            raise ValueError(
                f"train_images {recipe.train_images} is more than the {len(samples)} images of "
                f"{beton.name}; {len(samples)} would work"
            )
        samples = np.sort(np.random.default_rng(seed).permutation(samples)[: recipe.train_images])
    if isinstance(recipe, FinetuneConfig) and recipe.labels_per_class is not None:
        samples = few_labels(read_labels(beton), samples, recipe.labels_per_class, seed)
    if len(samples) < recipe.global_batch_size:
        raise ValueError(
            f"global_batch_size {recipe.global_batch_size} is more than the {len(samples)} "
            f"training images of {beton.name}; at most {len(samples)} would work"
        )
    return samples


def read_labels(beton: Path) -> NDArray[np.int64]:
    """Labels of all samples of a file, without touching its images."""
    from ffcv.reader import Reader

    reader = Reader(str(beton))
    column = list(reader.handlers).index("label")
    labels: NDArray[np.int64] = reader.metadata[f"f{column}"].astype(np.int64).reshape(-1)
    return labels
