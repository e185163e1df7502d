"""Writing shards in one process, compared to a bare loop that decodes and encodes the images."""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from convnextv2.data.collection import RGBImage
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection
from pipelines.bench.data.photographs import CLASS, QUALITY, Photographs
from pipelines.bench.turns import median_ratio, take_turns

SHRUNK, AT_LEAST = 384, 1000


def measure_writing(
    photographs: Photographs, folder: Path, turns: int
) -> dict[str, dict[str, float]]:
    """Images/s on one core: shrunk to 384 px, and kept byte for byte after a check."""
    root = _copies(photographs, folder / "source")
    contents = [path.read_bytes() for path in sorted((root / "train" / CLASS).iterdir())]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return {
            f"shrunk to {SHRUNK} px": _compare(
                lambda: _write(root, folder / "shards", SHRUNK), lambda: _shrink(contents), turns
            ),
            "kept byte for byte": _compare(
                lambda: _write(root, folder / "shards", None), lambda: _look_at(contents), turns
            ),
        }
    finally:
        cv2.setNumThreads(threads)


def _copies(photographs: Photographs, root: Path) -> Path:
    """Several copies of the photographs, so that writing takes seconds."""
    target = root / "train" / CLASS
    target.mkdir(parents=True)
    for copy in range(-(-AT_LEAST // photographs.count)):
        for path in sorted((photographs.files / CLASS).iterdir()):
            os.link(path, target / f"{copy:04}-{path.name}")
    return root


def _compare(ours: Callable[[], int], bare: Callable[[], int], turns: int) -> dict[str, float]:
    contenders = {"ours": partial(_rate, ours), "bare": partial(_rate, bare)}
    rates = take_turns(contenders, turns, warm_up=1)
    return {
        "images_per_second": statistics.median(rates["ours"]),
        "bare_images_per_second": statistics.median(rates["bare"]),
        "of_bare": median_ratio(rates["ours"], rates["bare"]),
    }


def _rate(work: Callable[[], int]) -> float:
    begin = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - begin)


def _write(root: Path, target: Path, side: int | None) -> int:
    """All steps of writing: list, plan, encode, verify, fsync, hash, publish."""
    shutil.rmtree(target, ignore_errors=True)
    source, selection = open_selected(root, Selection())
    settings = WriteSettings(max_resolution=side, jpeg_quality=QUALITY, num_shards=1)
    return write_collection(source, str(root), target, selection, settings).samples


def _shrink(contents: list[bytes]) -> int:
    for content in contents:
        pixels = _decode(content)
        height, width = pixels.shape[:2]
        ratio = min(1, SHRUNK / max(height, width))
        size = max(1, int(ratio * width)), max(1, int(ratio * height))
        shrunk = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        cv2.imencode(".jpg", shrunk, [int(cv2.IMWRITE_JPEG_QUALITY), QUALITY])
    return len(contents)


def _look_at(contents: list[bytes]) -> int:
    for content in contents:
        _decode(content)
    return len(contents)


def _decode(content: bytes) -> RGBImage:
    pixels: RGBImage = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)  # type: ignore[assignment]
    return pixels
