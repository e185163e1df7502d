"""Checks shards against their manifest, and describes what is in them."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2 import PathLike
from convnextv2.data.collection import DataError, UnreadableImage
from convnextv2.data.pixels import decode as decode_image
from convnextv2.data.shards.manifest import Manifest, Shard, read_manifest
from convnextv2.data.shards.mapped import Shards, open_shards
from convnextv2.data.shards.statistics import ChannelSums
from convnextv2.data.writing.encode import JPEG
from convnextv2.tasks import Normalization


def check(
    folder: PathLike,
    *,
    decode: bool = False,
    progress: Callable[[float, str], None] = lambda fraction, doing: None,
) -> list[str]:
    """List what is wrong with the shards in `folder`; empty if they are as they were written.

    Reads every byte. With `decode`, every image is decoded as well, and damaged ones are named.
    `progress` is called with the fraction of the work that is done, and what comes next.

    Raises:
        DataError: When there is no manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rounds = 2 if decode else 1
    problems = []
    for number, shard in enumerate(manifest.shards):
        progress(number / len(manifest.shards) / rounds, f"reading {shard.name}")
        problem = _compare(folder / shard.name, shard)
        problems += [problem] if problem else []
    try:
        shards = open_shards(folder, manifest)
    except DataError as error:
        return [*problems, str(error)]
    problems += _compare_counts(shards, manifest)
    if decode:
        for number, shard in enumerate(manifest.shards):
            progress((1 + number / len(manifest.shards)) / rounds, f"decoding {shard.name}")
            problems += _damaged(shards, number)
    return problems


def describe(folder: PathLike) -> dict[str, Any]:
    """A summary of the shards in `folder`: JSON values, numbers with their unit in the name.

    Raises:
        DataError: When they are not complete.
    """
    manifest = read_manifest(folder)
    shards = open_shards(folder, manifest)
    fields = np.concatenate([shards.records(n)["f0"] for n in range(len(manifest.shards))])
    longest = np.maximum(fields["height"], fields["width"])
    return {
        "split": manifest.split,
        "images": manifest.samples,
        "classes": len(manifest.classes),
        "images_per_class": _spread(np.array(manifest.class_counts)) if manifest.classes else None,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_image": round(manifest.bytes / manifest.samples),
        "channels": manifest.channels,
        "bits": manifest.bits,
        "longest_side_pixels": _spread(longest),
        "jpeg_share": float((fields["mode"] == JPEG).mean()),
        "skipped_images": len(manifest.skipped),
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
    }


def measure(folder: PathLike) -> Normalization:
    """Mean and standard deviation of the channels of the shards in `folder`, for values 0 to 1.

    They are in the manifest, except for RGB of 8 bits, whose images are decoded here.

    Raises:
        DataError: When the shards are not complete, or an image is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.mean:
        return manifest.normalization
    sums = ChannelSums.none(manifest.channels)
    shards = open_shards(folder, manifest)
    images = (image for number in range(len(shards.table)) for image in _images(shards, number))
    for where, field, stored in images:
        height, width = int(field["height"]), int(field["width"])
        if field["mode"] == JPEG:
            pixels = decode_image(stored, where)
        else:
            flat = np.frombuffer(stored, np.uint8, height * width * 3)
            pixels = flat.reshape(height, width, 3)
        sums += ChannelSums.of(pixels)
    return sums.normalization(manifest.bits)


def _spread(values: "np.ndarray[Any, Any]") -> dict[str, float]:
    return {
        "least": int(values.min()),
        "most": int(values.max()),
        "median": float(np.median(values)),
    }


def _compare(path: Path, shard: Shard) -> str | None:
    if not path.exists():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{path} has {size:,} bytes, was written with {shard.bytes:,}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        return f"{path} has changed since it was written (sha256 {digest[:12]}…, was " + (
            f"{shard.sha256[:12]}…)"
        )
    return None


def _compare_counts(shards: Shards, manifest: Manifest) -> list[str]:
    if not manifest.classes:
        return []
    labels, sets = shards.labels(), shards.label_sets
    known = len(manifest.classes) if sets is None else sets.count
    wrong = labels[(labels < -1) | (labels >= known)]
    if len(wrong):
        return [f"label {wrong[0]} is none of {known} {'classes' if sets is None else 'sets'}"]
    if sets is None:
        counts = np.bincount(labels[labels >= 0], minlength=known)
    else:
        counts = sets.class_counts(labels, len(manifest.classes))
    differs = np.flatnonzero(counts != manifest.class_counts)
    return [
        f"class {manifest.classes[label]} has {counts[label]} images, was written with "
        f"{manifest.class_counts[label]}"
        for label in differs[:5]
    ]


def _damaged(shards: Shards, number: int) -> list[str]:
    """The images of a shard that cannot be decoded, or are of another size than it says."""
    problems = []
    for where, field, stored in _images(shards, number):
        shape = (int(field["height"]), int(field["width"]), 3)
        try:
            if field["mode"] == JPEG and decode_image(stored, where).shape != shape:
                problems.append(f"{where}: it is not {shape[1]} x {shape[0]}")
        except UnreadableImage as error:
            problems.append(str(error))
    return problems


def _images(shards: Shards, number: int) -> Iterator[tuple[str, Any, bytes]]:
    """For every image of a shard: where it is, FFCV's record of it, and its bytes."""
    row, fields = shards.table[number], shards.records(number)["f0"]
    page_size = int(row["page_size"])
    for inside, field in enumerate(fields):
        begin = int(field["data_ptr"])
        end = (begin // page_size + 1) * page_size
        if inside + 1 < len(fields):
            end = min(end, int(fields[inside + 1]["data_ptr"]))
        where = shards.describe(int(row["first"]) + inside)
        yield where, field, shards.read(number, begin, end)
