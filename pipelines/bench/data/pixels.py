"""How decode="reduced" changes pixels, compared to full decoding of the same crops."""

from dataclasses import asdict, dataclass

import numpy as np

from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import Decode
from pipelines.bench.data import BATCH, CROP, WORKERS
from pipelines.bench.data.loaders import decoding
from pipelines.bench.data.photographs import Photographs
from pipelines.training.data.transforms import training_view

CROPS = (CROP, CROP // 2)
"""With 112 px, photographs of 500 px stand for ones of 1,000 px with 224 px crops."""


@dataclass(frozen=True)
class Difference:
    """Differences between the views of an epoch, decoded in two ways.

    Attributes:
        affected: Share of the views in which any pixel differs.
        mean: Mean absolute difference in those views, on the scale 0 to 255.
        p99: 99th percentile of that difference.
        largest: Maximum of that difference.
    """

    affected: float
    mean: float
    p99: float
    largest: int


def measure_pixels(photographs: Photographs) -> dict[str, dict[str, dict[str, float]]]:
    """The `Difference` of "reduced" and "exact" from "full", by crop size."""
    decodes: tuple[Decode, ...] = ("reduced", "exact")
    return {
        str(crop): {decode: asdict(compare(photographs, crop, decode)) for decode in decodes}
        for crop in CROPS
    }


def compare(photographs: Photographs, crop: int, decode: Decode) -> Difference:
    """Compare the views of an epoch in a decoding mode to fully decoded ones."""
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
    # A histogram needs 256 numbers, however many views there are.
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
