"""Which images go into which shard, decided once and kept beside the shards until all are written.

The parts of a source are shuffled by hashes of their names, so that a shard holds a mixture of
classes, and the sequence is cut into shards of about equal size. A plan has a digest of everything
it depends on, by which a process that starts again after a kill finds it without listing again.
Memory: 52 bytes for every image of the collection while it is made, none after.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from convnextv2.data.collection import MEMBER, DataError, Members, Source, name_key
from convnextv2.data.labels.census import Census, take_census
from convnextv2.data.labels.label_sets import label_sets_of
from convnextv2.data.selection import Selection, select
from convnextv2.data.sources import describe_kinds
from convnextv2.data.writing.disk import check_room, refusals
from convnextv2.data.writing.encode import WriteSettings
from convnextv2.data.writing.estimate import estimate
from convnextv2.data.writing.settle import settle
from convnextv2.durable import sync, write_json

WORK = ".writing"
PLAN = "plan.json"
LISTING_JOBS = 256
PLANNED = np.dtype([("part", "<u4"), ("member", MEMBER)])

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """Calls a function on every item, in any process; results come in any order."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterator[Result]: ...


@dataclass(frozen=True)
class Plan:
    """What is written: at most `samples` per shard, fewer where images are unreadable.

    `census` counts all images, `sample_bytes` is a forecast of the bytes of one, `bits` are those
    of a value.
    """

    digest: str
    census: Census
    samples: tuple[int, ...]
    sample_bytes: float
    bits: int = 8

    @property
    def classes(self) -> tuple[str, ...]:
        return self.census.classes

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:05}-of-{len(self.samples):05}.beton"


def plan_digest(fingerprint: str, selection: Selection, settings: WriteSettings, seed: int) -> str:
    """Hash of everything that decides the shards' content; `fingerprint` is the source's."""
    content = [fingerprint, asdict(selection), settings.content, seed]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def make_plan(
    source: Source,
    folder: Path,
    selection: Selection,
    settings: WriteSettings,
    seed: int,
    run: Map,
    digest: str,
    note: Callable[[str], None],
) -> Plan:
    """Decide what goes into which shard, and keep it in `folder`; `note` is called with warnings.

    Raises:
        DataError: When nothing is left to write, images do not go together or not with the
            settings, or the disk is too small.
    """
    sequence, classes = choose(source, selection, seed, run, note)
    settings = settle(source, sequence, settings, note)
    expected = estimate(source, sequence, settings)
    check_room(folder, expected.bytes)
    count = settings.num_shards or max(1, round(expected.bytes / settings.shard_bytes))
    shards = _cut(sequence, count)
    sample_bytes = expected.bytes / len(sequence)
    census = take_census(sequence["member"], classes, label_sets_of(source))
    bits = settings.pixel_format.bits
    plan = Plan(digest, census, tuple(map(len, shards)), sample_bytes, bits)
    with refusals(folder / WORK / PLAN, sequence.nbytes):
        for number, shard in enumerate(shards):
            np.save(members_path(folder, number), shard)
            sync(members_path(folder, number))
        write_json(folder / WORK / PLAN, asdict(plan))
    return plan


def choose(
    source: Source, selection: Selection, seed: int, run: Map, note: Callable[[str], None]
) -> tuple[Members, tuple[str, ...]]:
    """The selected images (rows of PLANNED) in their order, and the names of their classes.

    `note` is called with what the user should know of the source, and with files passed over.

    Raises:
        DataError: When there are none, or a part is damaged.
    """
    for text in source.notes:
        note(text)
    listings, passed_over = _list(source, run)
    if passed_over:
        kinds = describe_kinds(passed_over)
        if not any(map(len, listings)):
            raise DataError(f"no images in {', '.join(source.parts[:3])}, only {kinds}")
        note(f"{selection.split}: passed over {kinds}")
    sets = label_sets_of(source)
    chosen, classes = select(listings, source.classes, selection, seed, sets)
    del listings
    return _sequence(source, chosen, seed), classes


def _list(source: Source, run: Map) -> tuple[list[Members], Counter[str]]:
    """The listings of all parts, and other files by kind; several small parts are one task."""
    listings: list[Members] = [np.empty(0, MEMBER)] * len(source.parts)
    passed_over: Counter[str] = Counter()
    step = -(-len(listings) // LISTING_JOBS)
    pieces = [range(i, min(i + step, len(listings))) for i in range(0, len(listings), step or 1)]
    for parts, found, kinds in run(partial(_list_parts, source), pieces):
        passed_over.update(kinds)
        for part, members in zip(parts, found, strict=True):
            listings[part] = members
    return listings, passed_over


def _list_parts(source: Source, parts: range) -> tuple[range, list[Members], Counter[str]]:
    passed_over: Counter[str] = Counter()
    return parts, [source.members(part, passed_over) for part in parts], passed_over


def read_plan(folder: Path) -> Plan | None:
    """The plan that was made in `folder`, if there is one that this version can go on with."""
    path = folder / WORK / PLAN
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    if "census" not in content:
        return None
    census = content["census"]
    for name in ("classes", "class_counts"):
        census[name] = tuple(census[name])
    return Plan(
        content["digest"],
        Census(**census),
        tuple(content["samples"]),
        content["sample_bytes"],
        content["bits"],
    )


def members_path(folder: Path, number: int) -> Path:
    """Where the images (`PLANNED`) of a shard are listed."""
    return folder / WORK / f"{number:05}.npy"


def _sequence(source: Source, listings: list[Members], seed: int) -> Members:
    """All images, parts in the order of their drawn names."""
    keys = [name_key(f"{seed}:{part}") for part in source.parts]
    order = sorted(range(len(listings)), key=keys.__getitem__)
    sequence = np.empty(sum(map(len, listings)), PLANNED)
    start = 0
    for part in order:
        end = start + len(listings[part])
        piece = sequence[start:end]
        piece["part"], piece["member"] = part, listings[part]
        start = end
    return sequence


def _cut(sequence: Members, count: int) -> list[Members]:
    """Shards of about equal bytes in the source, none of them empty."""
    count = min(count, len(sequence))
    ends = np.cumsum(sequence["member"]["size"], dtype=np.uint64)
    targets = ends[-1] / count * np.arange(1, count)
    cuts = np.searchsorted(ends, targets) + 1
    # As many images as shards must be left on both sides of a cut.
    numbers = np.arange(1, count)
    cuts = np.maximum.accumulate(np.maximum(cuts - numbers, 0)) + numbers
    cuts = np.minimum(cuts, len(sequence) - count + numbers)
    return np.split(sequence, cuts)


def progress(destination: Path) -> tuple[int, int]:
    """Images done and images planned, of a collection that is being written."""
    work = destination / WORK
    done = 0
    for path in work.glob("*.done"):
        try:
            done += int(path.read_text() or 0)
        except (OSError, ValueError):  # It is being written, or was removed with the plan.
            continue
    try:
        planned = sum(json.loads((work / PLAN).read_text())["samples"])
    except OSError:  # There is no plan yet.
        planned = 0
    return done, planned


def forget_plan(folder: Path) -> None:
    """Remove the plan and all that was kept beside it."""
    # The plan is removed first, because without it the rest is ignored.
    (folder / WORK / PLAN).unlink(missing_ok=True)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    sync(folder)
