"""Small folders of shards, and what a loader serves of them."""

import threading
from pathlib import Path

import numpy as np

from convnextv2.data.augment import Augment, Mixing, RandAugment, RandomErasing
from convnextv2.data.ffcv_compat import EpochThread
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import CenterView, RandomView
from convnextv2.data.order.global_order import Indices
from convnextv2.data.writing import WriteSettings
from convnextv2.tasks.batch import Batch
from tests.convnextv2.data.fixtures.pictures import Pictures, write

HEIGHT, WIDTH = 24, 32
SAME = 60
SHAPES = ((HEIGHT, WIDTH),) * SAME + tuple((20 + 3 * n, 50 - n) for n in range(12))
SOURCE = Pictures(SHAPES)
COUNT = len(SHAPES)
EVERY = np.arange(COUNT, dtype=np.uint64)
RANDOM = RandomView(size=(16, 12), scale=(0.2, 1.0))
WHOLE = CenterView(size=(HEIGHT, WIDTH), crop=1.0)
RECIPE = Augment(
    rand_augment=RandAugment(), random_erasing=RandomErasing(0.5), mixing=Mixing(0.8, 1.0)
)
SEED = 11


def write_folders(root: Path) -> Path:
    """The same pictures in three raw shards, in one, and in two of JPEGs."""
    for name, mode, count in (("raw", "raw", 3), ("one", "raw", 1), ("jpg", "jpg", 2)):
        write(SOURCE, root / name, WriteSettings(mode=mode, num_shards=count))  # type: ignore[arg-type]
    return root


def loader_of(folder: Path, **changes: object) -> BetonLoader:
    settings: dict[str, object] = {"batch_size": 4, "view": RANDOM, "seed": SEED, **changes}
    return BetonLoader(folder, **settings)  # type: ignore[arg-type]


def bytes_of(batch: Batch) -> list[bytes]:
    shares = batch.coefficients
    return [
        image.numpy().tobytes() + (b"" if shares is None else shares[row].numpy().tobytes())
        for row, image in enumerate(batch.images)
    ]


def by_sample(loader: BetonLoader, samples: Indices, epoch: int = 0) -> dict[int, bytes]:
    """The bytes of every image served, by sample."""
    return {
        int(index): data
        for batch in loader.batches(samples, epoch)
        for index, data in zip(batch.indices, bytes_of(batch), strict=True)
    }


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, EpochThread)]
