"""Start-up of a loader in a fresh process: seconds to import, and to the first batch."""

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from pipelines.bench.data import BATCH, CROP, WORKERS
from pipelines.bench.processes import figures_of
from pipelines.bench.turns import take_turns

KINDS = ("ours", "ffcv")


def measure_startup(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds over `repeats` processes, after one that may compile."""
    starts = {
        kind: partial(figures_of, f"start-up of {kind}", "-m", __name__, kind, str(folder))
        for kind in KINDS
    }
    return {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in take_turns(starts, repeats, warm_up=1).items()
    }


def first_batch(kind: str, folder: Path) -> dict[str, float]:
    """Seconds to import the loader, and from constructing it to its first batch."""
    begin = time.perf_counter()
    if kind == "ours":
        import convnextv2.data.loading.loader  # noqa: F401
    else:
        import ffcv.loader  # noqa: F401
    imported = time.perf_counter()
    if kind == "ours":
        _ours(folder)
    else:
        _ffcv(folder)
    return {"import": imported - begin, "first_batch": time.perf_counter() - imported}


def _ours(folder: Path) -> None:
    import numpy as np

    from convnextv2.data.loading.loader import BetonLoader
    from convnextv2.data.loading.views import RandomView

    view = RandomView(size=(CROP, CROP))
    loader = BetonLoader(folder, batch_size=BATCH, view=view, num_workers=WORKERS)
    batches = loader.batches(np.arange(loader.shards.samples, dtype=np.uint64))
    next(batches)
    batches.close()


def _ffcv(folder: Path) -> None:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    (path,) = folder.glob("*.beton")
    crop = RandomResizedCropRGBImageDecoder((CROP, CROP))
    pipelines = {
        "image": [crop, RandomHorizontalFlip(), ToTensor()],
        "label": [IntDecoder(), ToTensor()],
    }
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=WORKERS,
        os_cache=True,
        drop_last=False,
        pipelines=pipelines,
    )
    batches = iter(loader)
    next(batches)
    batches.close()
    batches.join()


if __name__ == "__main__":
    print(json.dumps(first_batch(sys.argv[1], Path(sys.argv[2]))))
