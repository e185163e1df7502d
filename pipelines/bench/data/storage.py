"""`python -m pipelines.bench.data.storage`: our loader's speed and the size of images, by format.

From this follow the cores and the cache that a node needs to feed its GPUs.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection
from pipelines.bench.data import CROP, WORKERS
from pipelines.bench.data.epochs import rates_of
from pipelines.bench.data.loaders import ours
from pipelines.bench.data.photographs import QUALITY, SIDE, Photographs, prepare
from pipelines.bench.results import add_output_options, origin, publish
from pipelines.bench.turns import median_ratio

STORED: tuple[tuple[Literal["jpg", "raw"], int], ...] = (
    ("jpg", SIDE),
    ("jpg", 384),
    ("jpg", 256),
    ("raw", 256),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.data.storage")
    parser.add_argument("--photos", type=Path, help="folder of photographs (default: made up)")
    parser.add_argument("--turns", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="of a turn, at least (default: 4)")
    parser.add_argument("--epoch", type=int, default=4096, help="images in an epoch, at least")
    add_output_options(parser, "bench-storage.json")
    options = parser.parse_args()
    started = origin()
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        photographs = prepare(Path(folder) / "photographs", options.photos, options.epoch)
        found = measure_storage(photographs, Path(folder), options.turns, options.seconds)
    publish({**started, "stored": found}, options, lambda: show(found))


def measure_storage(
    photographs: Photographs, folder: Path, turns: int, seconds: float
) -> dict[str, dict[str, float]]:
    """By mode and longest side: images/s per core, ratio to the first, and bytes per image."""
    stored = {
        f"{mode}, {side} px": stored_as(photographs, folder / f"{mode}-{side}", mode, side)
        for mode, side in STORED
    }
    rates = rates_of({name: partial(ours, each) for name, each in stored.items()}, turns, seconds)
    first = next(iter(rates.values()))
    return {
        name: {
            "images_per_second_per_core": statistics.median(rate) / WORKERS,
            "of_first": median_ratio(rate, first),
            "bytes_per_image": size_of(stored[name]),
        }
        for name, rate in rates.items()
    }


def stored_as(
    photographs: Photographs, folder: Path, mode: Literal["jpg", "raw"], side: int
) -> Photographs:
    """The same photographs, stored with this mode and longest side (px)."""
    root = photographs.files.parent
    source, selection = open_selected(root, Selection())
    settings = WriteSettings(mode=mode, max_resolution=side, jpeg_quality=QUALITY, num_shards=1)
    written = Photographs(folder, photographs.count, photographs.passes)
    write_collection(source, str(root), written.shards, selection, settings)
    return written


def size_of(stored: Photographs) -> float:
    """Bytes per image, including the overhead of the file format."""
    (path,) = stored.shards.glob("*.beton")
    return path.stat().st_size / stored.count


def show(found: dict[str, dict[str, float]]) -> None:
    """Print the figures as a table."""
    table = Table("stored", "images/s a core", "of the first", "kB", title=f"crops of {CROP} px")
    for name, figures in found.items():
        rate, share, size = figures.values()
        table.add_row(name, f"{rate:,.0f}", f"{share:.2f}", f"{size / 1e3:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
