"""Memory per sample of a loader's processes, on a file of 2 million tiny samples.

Two processes read the same file, as two ranks of a node do. The private pages of a process
(/proc/self/smaps_rollup) include the loader's code and buffers, so those of the same loader on a
file with few samples are subtracted. Pss also counts shared pages, divided by their processes.
"""

import hashlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from convnextv2.data.shards.manifest import Manifest, Shard, write_manifest
from convnextv2.data.writing.beton import BetonWriter
from convnextv2.data.writing.encode import RAW, Encoded

MANY, FEW = 2_000_000, 20_000
RANKS, BATCH, PAGE, SHARD = 2, 1000, 1 << 23, "tiny.beton"


def measure_memory(folder: Path, many: int = MANY, few: int = FEW) -> dict[str, dict[str, float]]:
    """Bytes per sample, private and Pss, of one process of each loader."""
    for name, samples in (("many", many), ("few", few)):
        write_tiny(folder / name, samples)
    kinds: dict[str, Callable[[Path], object]] = {"ours": _ours, "ffcv": _ffcv}
    figures = {}
    for kind, load in kinds.items():
        grown = {name: _growth(load, folder / name) for name in ("many", "few")}
        figures[kind] = {
            figure: (grown["many"][figure] - grown["few"][figure]) / (many - few)
            for figure in grown["many"]
        }
    return figures


def write_tiny(folder: Path, samples: int) -> None:
    """Write a folder with one shard of this many raw images of one pixel."""
    folder.mkdir(parents=True)
    path = folder / SHARD
    pixels = np.random.default_rng(0).integers(0, 256, (samples, 3), np.uint8)
    with BetonWriter(path, samples, PAGE) as writer:
        for pixel in pixels:
            writer.append(Encoded(RAW, 1, 1, pixel.tobytes()), 0)
        writer.finish()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = Manifest(
        split="train",
        shards=(Shard(path.name, samples, path.stat().st_size, digest),),
        classes=("pixel",),
        class_counts=(samples,),
        skipped=(),
        settings={},
        selection={},
        source="made up",
        source_fingerprint="",
        digest="",
    )
    write_manifest(folder, manifest)


def _growth(load: Callable[[Path], object], folder: Path) -> dict[str, float]:
    """Mean growth of `RANKS` processes by loading, measured while all of them hold their memory."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(RANKS)]
    processes = [context.Process(target=_rank, args=(theirs, load, folder)) for _, theirs in pipes]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()
    ranks = [ours for ours, _ in pipes]
    try:
        empty = _ask(ranks)
        _ask(ranks)
        full = _ask(ranks)
    except EOFError as error:
        raise RuntimeError("a process that measures memory ended early") from error
    finally:
        for rank in ranks:
            rank.close()
        for process in processes:
            process.join()
    return {
        figure: float(np.mean([b[figure] - a[figure] for a, b in zip(empty, full, strict=True)]))
        for figure in empty[0]
    }


def _ask(ranks: list[Connection]) -> list[dict[str, float]]:
    """The memory of every rank, once all have done their next step."""
    for rank in ranks:
        rank.send("next")
    return [rank.recv() for rank in ranks]


def _rank(connection: Connection, load: Callable[[Path], object], folder: Path) -> None:
    """Report the memory of this process: before loading, after it, and when all have loaded."""
    connection.recv()
    connection.send(_owned())
    connection.recv()
    held = load(folder)
    connection.send(_owned())
    connection.recv()
    connection.send(_owned())
    del held


def _owned() -> dict[str, float]:
    """Bytes of this process's memory: private, and Pss."""
    sizes: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, size, _ = line.split()
        sizes[name.rstrip(":")] = int(size) * 1024
    private = sum(sizes[name] for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"))
    return {"private": private, "pss": sizes["Pss"]}


def _ours(folder: Path) -> object:
    """Our loader at the end of a shuffled epoch."""
    from convnextv2.data.loading.loader import BetonLoader
    from convnextv2.data.loading.views import SquashView
    from convnextv2.data.order.global_order import GlobalOrder

    loader = BetonLoader(folder, batch_size=BATCH, view=SquashView(size=(2, 2)))
    order = GlobalOrder(loader.shards.samples, BATCH, seed=0)
    for _ in loader.batches(order.worker_batches(0, rank=0, world_size=1)):
        pass
    return loader


def _ffcv(folder: Path) -> object:
    """The part of FFCV's loader that exists before its first batch."""
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    reader = Reader(str(folder / SHARD))
    return reader, OSCacheManager(reader)
