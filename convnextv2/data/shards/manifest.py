"""The manifest of a folder of .beton shards: what they hold, and that they are whole.

It is written last, so that a folder without one is known to be unfinished.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from convnextv2 import PathLike
from convnextv2.data.collection import DataError, PixelFormat
from convnextv2.data.labels.census import Census
from convnextv2.durable import write_json
from convnextv2.tasks import IMAGENET, Normalization

MANIFEST = "manifest.json"
SCHEMA = 1


class Skipped(NamedTuple):
    """An image of the source that is not in the shards."""

    name: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """A finished .beton file."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LabelSetsFile:
    """The file with the sets of classes that labels are numbers of."""

    name: str
    sets: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    `settings` and `selection` are those it was written with, `source` and `source_fingerprint` say
    from what it was written, and `digest` is a hash of all these. Sample numbers run through the
    shards in order: the first of a shard follows the last of the one before. `class_counts` has the
    number of samples of each of `classes`. Where images may have several classes, `label_sets` is
    the file with the sets. Every pixel has `channels` values of `bits`. `mean` and `std` of the
    channels, for values from 0 to 1, are measured while writing; they are empty for RGB of 8 bits.
    """

    split: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    settings: dict[str, Any]
    selection: dict[str, Any]
    source: str
    source_fingerprint: str
    digest: str = ""
    label_sets: LabelSetsFile | None = None
    channels: int = 3
    bits: int = 8
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    schema: int = SCHEMA

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def pixel_format(self) -> PixelFormat:
        return PixelFormat(self.channels, self.bits)

    @property
    def normalization(self) -> Normalization:
        """Mean and deviation to normalise by: those measured, or ImageNet's for RGB of 8 bits."""
        return Normalization(self.mean, self.std, self.bits) if self.mean else IMAGENET

    @property
    def census(self) -> Census:
        if self.label_sets is not None:
            return Census(self.samples, self.classes, self.class_counts, 0, multi_label=True)
        unlabelled = self.samples - sum(self.class_counts)
        return Census(self.samples, self.classes, self.class_counts, unlabelled)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Identity of the content: two folders with the same one serve the same samples."""
        hashes = [[shard.samples, shard.sha256] for shard in self.shards]
        sets = [] if self.label_sets is None else [self.label_sets.sha256]
        return hashlib.sha256(json.dumps([hashes, self.classes, *sets]).encode()).hexdigest()


def read_manifest(folder: PathLike) -> Manifest:
    """Read the manifest in `folder`.

    Raises:
        DataError: When there is none (the shards were never finished), or it is not one of ours.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        what = "does not exist" if not folder.exists() else f"has no {MANIFEST}"
        raise DataError(
            f"{folder} {what}: expected a folder written to the end by convnextv2 data write"
        )
    try:
        content = json.loads(path.read_text())
        schema = content["schema"]
        if schema != SCHEMA:
            raise DataError(f"{path} has schema {schema}, this version reads {SCHEMA}")
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        content["skipped"] = tuple(Skipped(*item) for item in content["skipped"])
        if content.get("label_sets") is not None:
            content["label_sets"] = LabelSetsFile(**content["label_sets"])
        for name in ("classes", "class_counts", "mean", "std"):
            content[name] = tuple(content.get(name, ()))
        manifest = Manifest(**content)
        _check_names(path, manifest)
        return manifest
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); write the shards again") from error


def _check_names(path: Path, manifest: Manifest) -> None:
    """Files are read by these names, and written by hashes (the cache): they stay in the folder."""
    sets = () if manifest.label_sets is None else (manifest.label_sets,)
    names = [name for file in (*manifest.shards, *sets) for name in (file.name, file.sha256)]
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise DataError(f"{path} must name files beside it, it names {', '.join(foreign)}")


def write_manifest(folder: PathLike, manifest: Manifest) -> None:
    """Publish the manifest."""
    write_json(Path(folder) / MANIFEST, asdict(manifest))
