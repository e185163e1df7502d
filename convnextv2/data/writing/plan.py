"""Which images go into which shard, decided once and kept beside the shards until all are written.

The parts of a source are put in an order drawn by their names, so that a shard holds a mixture of
classes, and the sequence is cut into shards of about equal size. A plan is addressed by a digest of
what decides it; a process that starts again after a kill finds it and lists nothing a second time.
Memory: 52 bytes for every image of the collection while it is made, none after.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.collection import MEMBER, DataError, Members, Source, name_key
from convnextv2.data.manifest import sync_folder, write_json
from convnextv2.data.selection import Selection, select
from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.estimate import estimate

WORK = ".writing"
PLAN = "plan.json"
PLANNED = np.dtype([("part", "<u4"), *((name, MEMBER[name]) for name in MEMBER.names or ())])

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Calls a function on every item, in any process; results come in any order."""


@dataclass(frozen=True)
class Plan:
    """What is written: `samples` per shard at most, fewer where images are unreadable."""

    digest: str
    classes: tuple[str, ...]
    samples: tuple[int, ...]

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:05}-of-{len(self.samples):05}.beton"


def plan_digest(source: Source, selection: Selection, settings: WriteSettings, seed: int) -> str:
    """What decides the content of the shards, hashed."""
    content = [source.fingerprint(), asdict(selection), settings.content, seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_plan(
    source: Source,
    folder: Path,
    selection: Selection,
    settings: WriteSettings,
    seed: int,
    run: Map,
    digest: str,
) -> Plan:
    """Find the plan in `folder`, or make it.

    Raises:
        DataError: When nothing is left to write, or the disk is too small for it.
    """
    found = read_plan(folder)
    if found is not None and found.digest == digest:
        return found
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / WORK).mkdir()
    listings: list[Members] = [np.empty(0, MEMBER)] * len(source.parts)
    for part, members in run(partial(_list_part, source), range(len(source.parts))):
        listings[part] = members
    chosen, classes = select(listings, source.classes, selection, seed)
    del listings
    sequence = _sequence(source, chosen, seed)
    del chosen
    expected = estimate(source, sequence, settings)
    _check_room(folder, expected.bytes)
    count = settings.num_shards or max(1, round(expected.bytes / settings.shard_bytes))
    shards = _cut(sequence, count)
    for number, shard in enumerate(shards):
        np.save(members_path(folder, number), shard)
    plan = Plan(digest, classes, tuple(map(len, shards)))
    write_json(folder / WORK / PLAN, asdict(plan))
    return plan


def read_plan(folder: Path) -> Plan | None:
    """The plan that was made in `folder`, if there is one."""
    path = folder / WORK / PLAN
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return Plan(content["digest"], tuple(content["classes"]), tuple(content["samples"]))


def members_path(folder: Path, number: int) -> Path:
    """Where the images (`PLANNED`) of a shard are listed."""
    return folder / WORK / f"{number:05}.npy"


def _list_part(source: Source, part: int) -> tuple[int, Members]:
    return part, source.members(part)


def _sequence(source: Source, listings: list[Members], seed: int) -> Members:
    """All images, parts in the order of their drawn names."""
    order = sorted(range(len(listings)), key=lambda part: name_key(f"{seed}:{source.parts[part]}"))
    sequence = np.empty(sum(map(len, listings)), PLANNED)
    start = 0
    for part in order:
        end = start + len(listings[part])
        piece = sequence[start:end]
        piece["part"] = part
        for name in MEMBER.names or ():
            piece[name] = listings[part][name]
        start = end
    return sequence


def _cut(sequence: Members, count: int) -> list[Members]:
    """Shards of about equal bytes in the source, none of them empty."""
    count = min(count, len(sequence))
    ends = np.cumsum(sequence["size"], dtype=np.uint64)
    targets = ends[-1] / count * np.arange(1, count)
    cuts = np.searchsorted(ends, targets) + 1
    # As many images as shards must be left on both sides of a cut.
    numbers = np.arange(1, count)
    cuts = np.maximum.accumulate(np.maximum(cuts - numbers, 0)) + numbers
    cuts = np.minimum(cuts, len(sequence) - count + numbers)
    return np.split(sequence, cuts)


def _check_room(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    # Shards of an earlier attempt are there already.
    free += sum(path.stat().st_size for path in folder.glob("*.beton"))
    if needed > free:
        raise DataError(
            f"disk full: {folder} has {free / 1e9:.1f} GB free, the shards need about "
            f"{needed / 1e9:.1f} GB; free some room, or set max_resolution"
        )


def remove_plan(folder: Path) -> None:
    """Forget the plan: everything is written."""
    # The plan goes first: without it the rest is nothing.
    (folder / WORK / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / WORK)
    sync_folder(folder)


def make_folder(folder: Path) -> None:
    """Make `folder` and find out at once whether it can be written to."""
    try:
        (folder / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} cannot be written to")
