"""`make bench-data`: our loader compared to those of FFCV, torchvision, timm and WebDataset.

All read the same JPEGs, in turns. It also measures how partial decoding changes pixels, the
start-up time, the memory per sample and the speed of writing.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

from convnextv2.data.loading.views import Decode
from pipelines.bench.data.epochs import rates_of
from pipelines.bench.data.loaders import BARE, CONTENDERS, REFERENCE, decoding, ours
from pipelines.bench.data.memory import FEW, MANY, measure_memory
from pipelines.bench.data.photographs import Photographs, prepare
from pipelines.bench.data.pixels import CROPS, measure_pixels
from pipelines.bench.data.startup import measure_startup
from pipelines.bench.data.tables import Decoding, Figures, Results, show, summary
from pipelines.bench.data.writing import measure_writing
from pipelines.bench.results import add_output_options, origin, publish

DECODES: tuple[Decode, ...] = ("reduced", "exact", "full")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.data", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photographs (default: made up)")
    parser.add_argument("--turns", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="of a turn, at least (default: 4)")
    parser.add_argument("--epoch", type=int, default=4096, help="images in an epoch, at least")
    parser.add_argument("--samples", type=int, default=MANY, help="of the file for memory")
    add_output_options(parser, "bench-data.json")
    options = parser.parse_args()
    started = origin()
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        photographs = prepare(Path(folder) / "photographs", options.photos, options.epoch)
        results: Results = {
            "images": f"{photographs.count} {'' if options.photos else 'made-up '}photographs",
            "turns": options.turns,
            "seconds": options.seconds,
            "loaders": measure_loaders(photographs, options.turns, options.seconds),
            "decode": measure_decode(photographs, options.turns, options.seconds),
            "writing": measure_writing(photographs, Path(folder) / "writing", options.turns),
            "startup": measure_startup(photographs.shards, options.turns),
            "samples": options.samples,
            "memory": measure_memory(Path(folder) / "tiny", options.samples, FEW),
        }
    publish({**started, **results}, options, lambda: show(results))


def measure_loaders(photographs: Photographs, turns: int, seconds: float) -> Figures:
    """Images/s of every contender, and the median ratios over the turns."""
    starts = {name: partial(start, photographs) for name, start in CONTENDERS.items()}
    rates = rates_of(starts, turns, seconds)
    return summary(rates, {"of_bare": BARE, "ours_is_faster_by": REFERENCE})


def measure_decode(photographs: Photographs, turns: int, seconds: float) -> Decoding:
    """Images/s of our loader in each decoding mode, and how the mode changes pixels."""
    starts = {
        f"{crop} {decode}": partial(ours, photographs, crop, decoding(decode))
        for crop in CROPS
        for decode in DECODES
    }
    rates = rates_of(starts, turns, seconds)
    return {"pixels": measure_pixels(photographs), "speed": summary(rates, {})}


if __name__ == "__main__":
    main()
