"""Shards against their manifest: is every byte as it was written, and what is in them?"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.collection import DataError, UnreadableImage
from convnextv2.data.manifest import Manifest, Shard, read_manifest
from convnextv2.data.pixels import decode as decode_image
from convnextv2.data.shards import Shards, open_shards
from convnextv2.data.writing.encode import JPEG
from convnextv2.paths import PathLike


def check(folder: PathLike, *, decode: bool = False) -> list[str]:
    """What is wrong with the shards in `folder`, in words; nothing, if they are as written.

    Reads every byte. `decode` decodes every image as well, and names those that are damaged.

    Raises:
        DataError: When there is no manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = [
        problem for shard in manifest.shards if (problem := _compare(folder / shard.name, shard))
    ]
    try:
        shards = open_shards(folder, manifest)
    except DataError as error:
        return [*problems, str(error)]
    problems += _compare_counts(shards, manifest)
    if decode:
        problems += _damaged(shards)
    return problems


def describe(folder: PathLike) -> dict[str, Any]:
    """A summary of the shards in `folder`, as JSON.

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
        "images per class": _spread(np.array(manifest.class_counts)) if manifest.classes else "-",
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes per image": round(manifest.bytes / manifest.samples),
        "longest side": _spread(longest),
        "JPEG": f"{(fields['mode'] == JPEG).mean():.1%}",
        "skipped": len(manifest.skipped),
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
    }


def _spread(values: "np.ndarray[Any, Any]") -> str:
    return f"{values.min()} to {values.max()}, median {np.median(values):g}"


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


def _damaged(shards: Shards) -> list[str]:
    problems = []
    for number, row in enumerate(shards.table):
        fields = shards.records(number)["f0"]
        page_size = int(row["page_size"])
        for inside, field in enumerate(fields):
            begin = int(field["data_ptr"])
            end = (begin // page_size + 1) * page_size
            if inside + 1 < len(fields):
                end = min(end, int(fields[inside + 1]["data_ptr"]))
            shape = (int(field["height"]), int(field["width"]), 3)
            where = shards.describe(int(row["first"]) + inside)
            try:
                stored = shards.read(number, begin, end)
                if field["mode"] == JPEG and decode_image(stored, where).shape != shape:
                    problems.append(f"{where}: it is not {shape[1]} x {shape[0]}")
            except UnreadableImage as error:
                problems.append(str(error))
    return problems
