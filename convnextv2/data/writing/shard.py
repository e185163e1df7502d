"""One shard, from its plan to a verified file: a function that any process can run.

Images are read in the order of the source and stored through a shuffle buffer, so that a page mixes
the classes of neighbouring images although the source is read sequentially. The bytes depend on
source, plan and settings only: a shard that is written again is the same.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.collection import (
    RGB,
    UNLABELLED,
    DataError,
    PixelFormat,
    Source,
    UnreadableImage,
)
from convnextv2.data.ffcv_compat import Reader, RGBImageField
from convnextv2.data.labels.label_sets import label_sets_of
from convnextv2.data.pixels import decode
from convnextv2.data.shards.manifest import Shard, Skipped
from convnextv2.data.shards.statistics import ChannelSums
from convnextv2.data.writing.beton import BetonWriter
from convnextv2.data.writing.disk import refusals
from convnextv2.data.writing.encode import JPEG, Encoded, WriteSettings, encode
from convnextv2.data.writing.plan import WORK, Plan, members_path
from convnextv2.durable import sync, write_json
from convnextv2.randomness import mix

PROGRESS_EVERY = 64


@dataclass(frozen=True)
class Record:
    """What is known of a written shard; its file's name and hash are in `shard`.

    `sums` are of all pixels; None for RGB of 8 bits, which is normalised by ImageNet's numbers.
    """

    digest: str
    shard: Shard | None
    class_counts: list[int]
    skipped: list[Skipped]
    sums: ChannelSums | None = None


@dataclass(frozen=True, repr=False)
class ShardJob:
    """What a process needs to know to write a shard; plain data."""

    source: Source
    folder: Path
    split: str
    plan: Plan
    number: int
    settings: WriteSettings

    def __repr__(self) -> str:
        return self.path.name

    @property
    def expected_bytes(self) -> float:
        return self.plan.sample_bytes * self.plan.samples[self.number]

    @property
    def path(self) -> Path:
        return self.folder / self.plan.shard_name(self.split, self.number)

    @property
    def record_path(self) -> Path:
        return self.folder / WORK / f"{self.number:05}.json"

    @property
    def progress_path(self) -> Path:
        return self.folder / WORK / f"{self.number:05}.done"


def write_shard(job: ShardJob) -> Record:
    """Write a shard, or do nothing if it is there.

    Raises:
        DataError: When the file cannot be written, or more images are unreadable than may be.
    """
    found = finished(job)
    if found is not None:
        return found
    for stale in job.folder.glob(f".{job.path.name}.*.partial"):
        stale.unlink(missing_ok=True)
    # A unique name, so that an earlier attempt that is still alive, though believed dead, can
    # neither write into this file nor publish it.
    partial = job.path.with_name(f".{job.path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with refusals(job.path, job.expected_bytes):
            record = _write(job, partial)
            if record.shard is not None:
                os.replace(partial, job.path)
                sync(job.folder)
            write_json(job.record_path, asdict(record))
    finally:
        partial.unlink(missing_ok=True)
    return record


def finished(job: ShardJob) -> Record | None:
    """The record of a shard that was written by this plan, and is still there in full."""
    if not job.record_path.exists():
        return None
    content = json.loads(job.record_path.read_text())
    shard = None if content["shard"] is None else Shard(**content["shard"])
    skipped = [Skipped(*item) for item in content["skipped"]]
    sums = ChannelSums(**content["sums"]) if content.get("sums") else None
    record = Record(content["digest"], shard, content["class_counts"], skipped, sums)
    there = shard is None or (job.path.exists() and job.path.stat().st_size == shard.bytes)
    return record if there and record.digest == job.plan.digest else None


def _write(job: ShardJob, partial: Path) -> Record:
    sets = label_sets_of(job.source)
    counts = np.zeros(len(job.plan.classes), np.int64)
    skipped: list[Skipped] = []
    capacity, pixel_format = job.plan.samples[job.number], job.settings.pixel_format
    sums = None if pixel_format == RGB else ChannelSums.none(pixel_format.channels)
    with BetonWriter(partial, capacity, job.settings.page_size, pixel_format) as beton:
        images = _encoded(job, skipped)
        for encoded, label in _shuffled(images, job.settings.shuffle_buffer_bytes, job.number):
            beton.append(encoded, label)
            if sums is not None:
                sums += ChannelSums.of(encoded.pixels(pixel_format))
            if label != UNLABELLED:
                counts[label if sets is None else sets.classes_of(label)] += 1
        beton.finish()
        samples = beton.samples
    if samples == 0:
        return Record(job.plan.digest, None, counts.tolist(), skipped)
    _verify(partial, samples, pixel_format)
    shard = Shard(job.path.name, samples, partial.stat().st_size, _sync_and_hash(partial))
    return Record(job.plan.digest, shard, counts.tolist(), skipped, sums)


def _encoded(job: ShardJob, skipped: list[Skipped]) -> Iterator[tuple[Encoded, int]]:
    """The images of the shard in the order of the source; unreadable ones are put in `skipped`."""
    planned = np.load(members_path(job.folder, job.number), mmap_mode="r")
    cuts = np.flatnonzero(np.diff(planned["part"])) + 1
    done = 0
    job.progress_path.write_text("0")
    for rows in np.split(planned, cuts):
        part, members = int(rows["part"][0]), np.array(rows["member"])
        for stored, key, label in zip(
            job.source.read(part, members), members["key"], members["label"], strict=True
        ):
            try:
                yield encode(stored, int(key), job.settings), int(label)
            except UnreadableImage as error:
                reason = str(error).removeprefix(f"{stored.name}: ")
                skipped.append(Skipped(stored.name, reason))
                _refuse_too_many(job, skipped)
            done += 1
            if done % PROGRESS_EVERY == 0 or done == len(planned):
                job.progress_path.write_text(str(done))


def _refuse_too_many(job: ShardJob, skipped: list[Skipped]) -> None:
    if len(skipped) > job.settings.max_unreadable:
        raise too_many(skipped, job.settings.max_unreadable)


def too_many(skipped: list[Skipped], limit: int) -> DataError:
    """The error for more unreadable images than may be left out."""
    named = "\n".join(f"  {name}: {reason}" for name, reason in sorted(skipped)[:5])
    return DataError(
        f"{len(skipped)} images cannot be read, more than max_unreadable = {limit}:\n{named}"
    )


def _shuffled(
    images: Iterable[tuple[Encoded, int]], buffer_bytes: int, seed: int
) -> Iterator[tuple[Encoded, int]]:
    """Yield images in random order from a buffer of so many bytes; draws are hashes of counters."""
    buffer: list[tuple[Encoded, int]] = []
    held, drawn = 0, 0

    def draw() -> tuple[Encoded, int]:
        nonlocal held, drawn
        number = mix(mix(np.array([seed], np.uint64)) + np.uint64(drawn))[0]
        slot = int(number) % len(buffer)
        buffer[slot], buffer[-1] = buffer[-1], buffer[slot]
        image = buffer.pop()
        held -= len(image[0].data)
        drawn += 1
        return image

    for image in images:
        buffer.append(image)
        held += len(image[0].data)
        while held > buffer_bytes:
            yield draw()
    while buffer:
        yield draw()


def _verify(path: Path, samples: int, pixel_format: PixelFormat) -> None:
    """Read the file back with FFCV's reader: all of it is there, and images decode."""
    # Records are the same, whatever the pixels.
    reader = Reader(str(path), {} if pixel_format == RGB else {"image": RGBImageField})
    records, table = reader.metadata, reader.alloc_table
    end = int(reader.header["alloc_table_ptr"])
    whole = (
        len(records) == samples
        and len(table) == samples
        and bool((table["ptr"] == records["f0"]["data_ptr"]).all())
        and int((table["ptr"] + table["size"]).max()) <= end
        and end % int(reader.page_size) == 0
    )
    if not whole:
        raise DataError(f"{path.parent} took only part of {path.name} (disk full?)")
    with path.open("rb") as file:
        for row in {0, samples // 2, samples - 1}:
            stored = records[row]["f0"], int(table[row]["size"])
            _check_image(file, *stored, pixel_format.pixel_bytes, f"{path}, image {row}")


def _check_image(file: Any, field: Any, size: int, pixel_bytes: int, name: str) -> None:
    file.seek(int(field["data_ptr"]))
    data = file.read(size)
    height, width = int(field["height"]), int(field["width"])
    if field["mode"] == JPEG:
        good = decode(data, name).shape == (height, width, 3)
    else:
        good = len(data) == height * width * pixel_bytes
    if not good:
        raise DataError(f"{name} did not come back as it was written")


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sync(path)
    return digest
