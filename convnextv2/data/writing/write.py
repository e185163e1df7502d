"""Writes a whole collection: plan, shards in parallel, manifest. It can be killed and resumed.

Every shard is published by itself with a record beside the plan; one that has a record is not
written again. The manifest is written when all shards are there, and the plan is removed last.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from convnextv2 import PathLike
from convnextv2.data.collection import DataError, PixelFormat, Source
from convnextv2.data.labels.census import Census
from convnextv2.data.labels.label_sets import LABEL_SETS, label_sets_of
from convnextv2.data.selection import Selection
from convnextv2.data.shards.manifest import (
    MANIFEST,
    LabelSetsFile,
    Manifest,
    read_manifest,
    write_manifest,
)
from convnextv2.data.shards.statistics import ChannelSums
from convnextv2.data.writing.disk import alone, check_room, refusals
from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.plan import (
    WORK,
    Item,
    Map,
    Plan,
    Result,
    forget_plan,
    make_plan,
    plan_digest,
    read_plan,
)
from convnextv2.data.writing.shard import Record, ShardJob, finished, too_many, write_shard

SHARD_NAME = re.compile(r"(train|val)-\d{5}-of-\d{5}\.beton")


def here(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The `Map` that runs everything in this process."""
    return map(function, items)


def plan_collection(
    source: Source,
    destination: PathLike,
    selection: Selection,
    settings: WriteSettings,
    *,
    seed: int = 0,
    run: Map = here,
    note: Callable[[str], None] = warnings.warn,
    fingerprint: str | None = None,
) -> Census:
    """List what `write_collection` would write, and keep the plan in `destination` for it.

    Only a few images are decoded, to estimate the size. The `fingerprint` of a source of many files
    takes long to compute, so it can be given.

    Raises:
        DataError: As `write_collection` before its first shard.
    """
    destination = Path(destination)
    digest = plan_digest(fingerprint or source.fingerprint(), selection, settings, seed)
    with _at(destination, note):
        complete = _complete(destination, digest)
        if complete is not None:
            return complete.census
        plan = _find_plan(destination, digest, note) or make_plan(
            source, destination, selection, settings, seed, run, digest, note
        )
        return plan.census


def write_collection(
    source: Source,
    name: str,
    destination: PathLike,
    selection: Selection,
    settings: WriteSettings,
    *,
    seed: int = 0,
    run: Map = here,
    note: Callable[[str], None] = warnings.warn,
    fingerprint: str | None = None,
) -> Manifest:
    """Write the images that `selection` takes of `source` to shards in the folder `destination`.

    A folder that was written from the same source, selection and settings is left as it is. The
    manifest names the source `name`. `run` maps a function over items, in this process or on a
    cluster. `note` is called with what the user should know. `fingerprint` is the source's, if it
    has been computed already.

    Raises:
        DataError: When nothing is left to write, too many images are unreadable, the disk is full,
            another process writes there, or the folder holds another collection.
    """
    destination = Path(destination)
    fingerprint = fingerprint or source.fingerprint()
    digest = plan_digest(fingerprint, selection, settings, seed)
    with _at(destination, note):
        complete = _complete(destination, digest)
        if complete is not None:
            forget_plan(destination)
            note(f"{destination} is complete already: nothing to do")
            return complete
        plan = _find_plan(destination, digest, note) or make_plan(
            source, destination, selection, settings, seed, run, digest, note
        )
        records = _write_shards(source, destination, selection, settings, plan, run)
        manifest = _manifest(fingerprint, name, selection, settings, plan, records)
        if not manifest.shards:
            raise DataError(f"not one of the {sum(plan.samples)} images of {name} can be read")
        with refusals(destination / MANIFEST, 0):
            manifest = _with_label_sets(manifest, source, destination)
            write_manifest(destination, manifest)
        forget_plan(destination)
    return manifest


@contextmanager
def _at(destination: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Create the folder, and be the only process that writes there."""
    with refusals(destination, 0):
        destination.mkdir(parents=True, exist_ok=True)
    with alone(destination, note):
        yield


def _with_label_sets(manifest: Manifest, source: Source, destination: Path) -> Manifest:
    """Write the sets of classes beside the shards, where labels are numbers of these."""
    sets = label_sets_of(source)
    if sets is None:
        return manifest
    path = destination / LABEL_SETS
    sets.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return replace(manifest, label_sets=LabelSetsFile(path.name, sets.count, digest))


def _find_plan(destination: Path, digest: str, note: Callable[[str], None]) -> Plan | None:
    """The plan of an earlier attempt; one of other settings is removed with its shards."""
    for stale in destination.glob(".*.partial"):
        stale.unlink()
    plan = read_plan(destination)
    if plan is not None and plan.digest == digest:
        return plan
    if plan is not None:
        note(f"removed what {destination} had of another collection, or of other settings")
    forget_plan(destination)
    for path in destination.iterdir():
        if SHARD_NAME.fullmatch(path.name):
            path.unlink()
    (destination / WORK).mkdir()
    return None


def _write_shards(
    source: Source,
    destination: Path,
    selection: Selection,
    settings: WriteSettings,
    plan: Plan,
    run: Map,
) -> list[Record]:
    """The records of all shards in their order; what has none yet is written."""
    settled = replace(settings, bits=plan.bits)
    jobs = [
        ShardJob(source, destination, selection.split, plan, number, settled)
        for number in range(len(plan.samples))
    ]
    records = {job.number: record for job in jobs if (record := finished(job))}
    left = [job for job in jobs if job.number not in records]
    check_room(destination, sum(job.expected_bytes for job in left))
    _refuse_too_many(records, settings)
    for number, record in run(_numbered, left):
        records[number] = record
        _refuse_too_many(records, settings)
    return [records[job.number] for job in jobs]


def _refuse_too_many(records: dict[int, Record], settings: WriteSettings) -> None:
    skipped = [item for record in records.values() for item in record.skipped]
    if len(skipped) > settings.max_unreadable:
        raise too_many(skipped, settings.max_unreadable)


def _numbered(job: ShardJob) -> tuple[int, Record]:
    return job.number, write_shard(job)


def _complete(destination: Path, digest: str) -> Manifest | None:
    """The manifest of the same collection; raises DataError for one of another."""
    if not (destination / MANIFEST).exists():
        return None
    manifest = read_manifest(destination)
    if manifest.digest != digest:
        raise DataError(
            f"{destination} holds another collection, or one of other settings (its {MANIFEST} "
            "says which); remove the folder, or write to another one"
        )
    return manifest


def _manifest(
    fingerprint: str,
    name: str,
    selection: Selection,
    settings: WriteSettings,
    plan: Plan,
    records: list[Record],
) -> Manifest:
    counts = np.array([record.class_counts for record in records], np.int64).sum(axis=0)
    pixel_format = PixelFormat(settings.channels, plan.bits)
    sums = [record.sums for record in records if record.sums is not None]
    measured = sum(sums, start=ChannelSums.none(settings.channels))
    mean, std, _ = measured.normalization(plan.bits) if measured.pixels else ((), (), 0)
    return Manifest(
        split=selection.split,
        shards=tuple(record.shard for record in records if record.shard is not None),
        classes=plan.classes,
        class_counts=tuple(map(int, counts)) if plan.classes else (),
        skipped=tuple(sorted(item for record in records for item in record.skipped)),
        settings=settings.content,
        selection=asdict(selection),
        source=name,
        source_fingerprint=fingerprint,
        digest=plan.digest,
        **pixel_format._asdict(),
        mean=mean,
        std=std,
    )
