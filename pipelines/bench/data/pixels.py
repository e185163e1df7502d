"""What decode="reduced" does to pixels, against decoding everything: the same crops of both."""

from dataclasses import asdict, dataclass

import numpy as np

from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import Decode
from pipelines.bench.data import BATCH, CROP, WORKERS
from pipelines.bench.data.loaders import decoding
from pipelines.bench.data.photographs import Photographs
from pipelines.training.transforms import training_view

CROPS = (CROP, CROP // 2)
"""At 112 px the photographs of 500 px are to the crop what 1,000 px are at 224."""


@dataclass(frozen=True)
class Difference:
    """Of the views of an epoch, decoded in two ways.

    Attributes:
        affected: Share of the views with any other pixel.
        mean: Absolute difference in those views, in levels of 255.
        p99: Its 99th percentile.
        largest: Its maximum.
    """

    affected: float
    mean: float
    p99: float
    largest: int


def measure_pixels(photographs: Photographs) -> dict[str, dict[str, dict[str, float]]]:
    """`Difference` of "reduced" and of "exact" from "full", by the crop's size."""
    decodes: tuple[Decode, ...] = ("reduced", "exact")
    return {
        str(crop): {decode: asdict(compare(photographs, crop, decode)) for decode in decodes}
        for crop in CROPS
    }


def compare(photographs: Photographs, crop: int, decode: Decode) -> Difference:
    """The views of an epoch decoded so, against all of it decoded."""
    kinds: tuple[Decode, ...] = (decode, "full")
    loaders = [
        BetonLoader(
            photographs.shards,
            batch_size=BATCH,
            view=training_view(crop, decoding(kind)),
            num_workers=WORKERS,
        )
        for kind in kinds
    ]
    views, affected = 0, 0
    # Differences are counted by size: 256 numbers, however many views.
    counts = np.zeros(256, np.int64)
    order = photographs.order(0)
    for left, right in zip(*(loader.batches(order) for loader in loaders), strict=True):
        difference = np.abs(left.images.numpy().astype(np.int16) - right.images.numpy())
        other = difference.any(axis=(1, 2, 3))
        views, affected = views + len(other), affected + int(other.sum())
        counts += np.bincount(difference[other].ravel(), minlength=256)
    if not affected:
        return Difference(0.0, 0.0, 0.0, 0)
    shares = np.cumsum(counts) / counts.sum()
    return Difference(
        affected / views,
        float(counts @ np.arange(256) / counts.sum()),
        float(np.searchsorted(shares, 0.99)),
        int(np.flatnonzero(counts)[-1]),
    )
