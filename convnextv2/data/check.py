"""Looking at a folder of shards: what it holds, and whether that is what was written."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.types import ALLOC_TABLE_TYPE, HeaderType
from numpy.typing import NDArray

from convnextv2.data.collection import UNLABELLED, DataError, UnreadableImage
from convnextv2.data.manifest import Manifest, Shard, read_manifest
from convnextv2.data.pixels import decode
from convnextv2.data.shards import Shards, open_shards
from convnextv2.data.writing.encode import JPEG, RAW

CHUNK = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Info:
    """A folder of shards in numbers.

    Attributes:
        jpegs: Images stored as JPEGs; the others are pixels.
        longest_side: Least, median and most of the images' longest sides, in pixels.
        shortest_side: The same of their shortest sides.
        images_per_class: Least and most, of the classes; None without labels.
    """

    source: str
    split: str
    shards: int
    samples: int
    bytes: int
    classes: int
    images_per_class: tuple[int, int] | None
    skipped: int
    jpegs: int
    longest_side: tuple[int, int, int]
    shortest_side: tuple[int, int, int]


def info(folder: Path) -> Info:
    """Summarise a folder from its manifest and the records of its images; pixels are not read.

    Raises:
        DataError: When it is not a finished folder of shards.
    """
    manifest = read_manifest(folder)
    shards = open_shards(folder, manifest)
    images = np.concatenate([shards.records(n)["f0"] for n in range(len(shards.table))])
    height, width = images["height"], images["width"]
    return Info(
        source=manifest.source,
        split=manifest.split,
        shards=len(manifest.shards),
        samples=manifest.samples,
        bytes=manifest.bytes,
        classes=len(manifest.classes),
        images_per_class=(min(manifest.class_counts), max(manifest.class_counts))
        if manifest.class_counts
        else None,
        skipped=len(manifest.skipped),
        jpegs=int((images["mode"] == JPEG).sum()),
        longest_side=_spread(np.maximum(height, width)),
        shortest_side=_spread(np.minimum(height, width)),
    )


def _spread(sides: NDArray[Any]) -> tuple[int, int, int]:
    return int(sides.min()), int(np.median(sides)), int(sides.max())


def check(
    folder: Path,
    *,
    decode_all: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Compare every byte of the shards with the manifest; returns what is wrong, best nothing.

    A shard's hash tells that a byte of it has changed. With `decode_all` every image is decoded,
    which names the damaged ones where damage shows. `on_progress` hears how many bytes are read.

    Raises:
        DataError: When there is no manifest to compare with.
    """
    manifest = read_manifest(folder)
    problems: list[str] = []
    labels = np.zeros(len(manifest.classes), np.int64)
    done = 0
    for shard in manifest.shards:
        path = folder / shard.name
        problems += _compare(path, shard, lambda read, before=done: on_progress(before + read))
        done += shard.bytes
        try:
            mapped = Shards([path])
        except DataError as error:
            problems.append(str(error))
            continue
        found = list(_table_problems(mapped, shard, len(manifest.classes)))
        problems += [f"{path}: {problem}" for problem in found]
        if found:
            continue
        known = mapped.labels()
        labels += np.bincount(known[known != UNLABELLED], minlength=len(labels))[: len(labels)]
        if decode_all:
            problems += _undecodable(mapped)
    problems += _count_problems(folder, manifest, labels) if not problems else []
    return list(dict.fromkeys(problems))


def _compare(path: Path, shard: Shard, on_progress: Callable[[int], None]) -> list[str]:
    if not path.exists():
        return [f"{path} is missing"]
    size = path.stat().st_size
    if size != shard.bytes:
        return [f"{path} has {size:,} bytes, its manifest says {shard.bytes:,}"]
    digest, read = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                read += len(chunk)
                on_progress(read)
    except OSError as error:
        return [f"{path} cannot be read at byte {read:,}: {error.strerror}"]
    if digest.hexdigest() != shard.sha256:
        return [f"{path} is not what was written: its sha256 is not that of the manifest"]
    return []


def _table_problems(mapped: Shards, shard: Shard, classes: int) -> Iterator[str]:
    """What does not fit together inside a shard; pixels are not read."""
    row, records = mapped.table[0], mapped.records(0)
    if len(records) != shard.samples:
        yield f"{len(records)} images, its manifest says {shard.samples}"
    file = np.memmap(mapped.paths[0], np.uint8, mode="r")
    end = int(file[: HeaderType.itemsize].view(HeaderType)[0]["alloc_table_ptr"])
    if end + len(records) * ALLOC_TABLE_TYPE.itemsize != len(file):
        yield "its allocation table is incomplete"
        return
    table = file[end:].view(ALLOC_TABLE_TYPE)
    images, page = records["f0"], int(row["page_size"])
    begins, ends = table["ptr"].astype(np.int64), (table["ptr"] + table["size"]).astype(np.int64)
    pixels = images["height"].astype(np.int64) * images["width"] * 3
    labels = records["f1"]
    wrong = {
        "the allocation table names another image": table["sample_id"] != np.arange(len(table)),
        "the allocation table names another place": table["ptr"] != images["data_ptr"],
        "it lies before the image that comes before it": np.diff(begins, prepend=-1) < 0,
        "it overlaps the next one": np.append(ends[:-1] > begins[1:], ends[-1] > end),
        "it crosses a page": begins // page != (ends - 1) // page,
        "it is neither a JPEG nor pixels": ~np.isin(images["mode"], (JPEG, RAW)),
        "it has no pixels": pixels == 0,
        "its bytes are not its pixels": (images["mode"] == RAW) & (pixels != table["size"]),
        "it has a class that is not there": (labels < UNLABELLED) | (labels >= max(classes, 0)),
    }
    for problem, where in wrong.items():
        if where.any():
            yield f"image {int(np.flatnonzero(where)[0])}: {problem}, and {where.sum() - 1} more"


def _undecodable(mapped: Shards) -> Iterator[str]:
    """Images that do not decode to the size they should have, with any warning taken for damage."""
    images = mapped.records(0)["f0"]
    file = np.memmap(mapped.paths[0], np.uint8, mode="r")
    end = int(file[: HeaderType.itemsize].view(HeaderType)[0]["alloc_table_ptr"])
    sizes = file[end:].view(ALLOC_TABLE_TYPE)["size"]
    for sample in np.flatnonzero(images["mode"] == JPEG):
        image, name = images[sample], mapped.describe(int(sample))
        begin = int(image["data_ptr"])
        try:
            shape = decode(file[begin : begin + int(sizes[sample])].tobytes(), name).shape
        except UnreadableImage as error:
            yield str(error)
            continue
        if shape[:2] != (image["height"], image["width"]):
            yield f"{name}: {shape[1]} x {shape[0]} pixels, its record says otherwise"


def _count_problems(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> list[str]:
    counts = np.array(manifest.class_counts, np.int64)
    wrong = np.flatnonzero(labels != counts) if len(counts) == len(labels) else np.arange(1)
    if not len(labels) or not len(wrong):
        return []
    first = int(wrong[0])
    return [
        f"{folder}: {labels[first]} images of class {manifest.classes[first]}, its manifest says "
        f"otherwise, and so for {len(wrong) - 1} more classes"
    ]
