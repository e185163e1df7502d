"""A whole collection: plan, shards in parallel, manifest. Killed at any point, it goes on.

Every shard is published by itself and has a record beside the plan; what has one is not done again.
The manifest is written when all are there, and the plan is removed last.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.collection import DataError, Source
from convnextv2.data.manifest import MANIFEST, Manifest, read_manifest, sync_folder, write_manifest
from convnextv2.data.selection import Selection
from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.plan import (
    WORK,
    Map,
    Plan,
    make_folder,
    make_plan,
    plan_digest,
    remove_plan,
)
from convnextv2.data.writing.shard import Record, ShardJob, finished, too_many, write_shard


def here(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """The map of a single process."""
    return map(function, items)


def write_collection(
    source: Source,
    name: str,
    destination: Path,
    selection: Selection,
    settings: WriteSettings,
    *,
    seed: int = 0,
    run: Map = here,
) -> Manifest:
    """Write what `selection` leaves of `source` to shards in the folder `destination`.

    A folder that was written by the same source, selection and settings is left as it is. `name`
    says in the manifest where the source lies. `run` maps a function over items, in this process or
    on a cluster.

    Raises:
        DataError: When nothing is left to write, too many images are unreadable, the disk is full,
            another process writes there, or the folder holds another collection.
    """
    digest = plan_digest(source, selection, settings, seed)
    make_folder(destination)
    with _alone(destination):
        complete = _complete(destination, digest)
        if complete is not None:
            remove_plan(destination)
            return complete
        for stale in destination.glob(".*.partial"):
            stale.unlink()
        plan = make_plan(source, destination, selection, settings, seed, run, digest)
        jobs = [
            ShardJob(source, destination, selection.split, plan, number, settings)
            for number in range(len(plan.samples))
        ]
        records = {job.number: record for job in jobs if (record := finished(job))}
        skipped = [item for record in records.values() for item in record.skipped]
        left = [job for job in jobs if job.number not in records]
        for number, record in run(_numbered, left):
            records[number] = record
            skipped += record.skipped
            if len(skipped) > settings.max_unreadable:
                raise too_many(skipped, settings.max_unreadable)
        manifest = _manifest(source, name, selection, settings, plan, records)
        if not manifest.shards:
            raise DataError(f"not one of the {sum(plan.samples)} images of {name} can be read")
        _remove_others(destination, manifest)
        write_manifest(destination, manifest)
        remove_plan(destination)
    return manifest


def progress(destination: Path) -> tuple[int, int]:
    """Images done and images planned, of a collection that is being written."""
    work = destination / WORK
    done = 0
    for path in work.glob("*.done"):
        try:
            done += int(path.read_text() or 0)
        except (OSError, ValueError):  # It is just being written, or gone with the plan.
            continue
    try:
        planned = sum(json.loads((work / "plan.json").read_text())["samples"])
    except OSError:  # There is no plan yet.
        planned = 0
    return done, planned


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
    source: Source,
    name: str,
    selection: Selection,
    settings: WriteSettings,
    plan: Plan,
    records: dict[int, Record],
) -> Manifest:
    ordered = [records[number] for number in sorted(records)]
    counts = np.sum([record.class_counts for record in ordered], axis=0, dtype=np.int64)
    return Manifest(
        split=selection.split,
        shards=tuple(record.shard for record in ordered if record.shard is not None),
        classes=plan.classes,
        class_counts=tuple(counts.tolist()) if plan.classes else (),
        skipped=tuple(sorted(item for record in ordered for item in record.skipped)),
        settings=settings.content,
        selection=asdict(selection),
        source=name,
        source_fingerprint=source.fingerprint(),
        digest=plan.digest,
    )


def _remove_others(destination: Path, manifest: Manifest) -> None:
    """Remove shards of a plan that was given up."""
    kept = {shard.name for shard in manifest.shards}
    for path in destination.glob("*.beton"):
        if path.name not in kept:
            path.unlink()
    sync_folder(destination)


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    """One process writes to a folder; the kernel lets go of the lock however it ends."""
    descriptor = os.open(destination, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DataError(f"another process is writing to {destination}") from None
    finally:
        os.close(descriptor)
