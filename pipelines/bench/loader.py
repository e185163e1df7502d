"""Loader: images/s of decoding, cropping and flipping JPEGs from a .beton file."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convnextv2.data.load import BetonLoader
from convnextv2.data.sources import open_source
from convnextv2.data.views import RandomView
from convnextv2.data.write import WriteSettings, write_beton

IMAGES, SIDE, CROP, BATCH, WORKERS = 256, 500, 224, 64, 2


def measure(folder: Path, photos: Path | None, epochs: int = 4) -> dict[str, Any]:
    """Time `epochs` passes after one that compiles and fills the page cache."""
    source = open_source(photos or make_photos(folder / "photos"), "train")
    beton = folder / "photos.beton"
    settings = WriteSettings(mode="jpg", max_resolution=SIDE, num_workers=WORKERS)
    manifest = write_beton(source, beton, settings)
    loader = BetonLoader(
        beton, batch_size=BATCH, view=RandomView(size=(CROP, CROP)), num_workers=WORKERS
    )
    samples = np.resize(manifest.usable, max(len(manifest.usable), 4 * BATCH))
    rates = []
    for epoch in range(epochs + 1):
        begin = time.perf_counter()
        seen = sum(len(batch.labels) for batch in loader.batches(samples, epoch))
        rates.append(seen / (time.perf_counter() - begin))
    return {
        "what": f"JPEG q90, longest side {SIDE} px, random-resized-crop to {CROP}, "
        f"{WORKERS} threads",
        "images": "photographs" if photos else "made-up photographs",
        "images_per_second": sorted(rates[1:])[epochs // 2],
    }


def make_photos(folder: Path) -> Path:
    """Images as costly to decode as photographs: smooth shapes with fine grain."""
    rng = np.random.default_rng(0)
    target = folder / "class"
    target.mkdir(parents=True)
    for number in range(IMAGES):
        coarse = rng.integers(0, 255, (12, 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE * 3 // 4), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (*np.asarray(smooth).shape[:2], 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(target / f"{number:04}.jpg", quality=90)
    return folder
