"""Stages `write`, `write-intermediate`: an image collection as shards in train/ and val/."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from convnextv2.data.collection import DataError, Source, Split
from convnextv2.data.labels.census import Census
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.shards.manifest import MANIFEST, read_manifest
from convnextv2.data.sources import Columns
from convnextv2.data.writing import WriteSettings, plan_collection, write_collection
from convnextv2.data.writing.plan import progress
from pipelines.config import DataConfig, WriteConfig
from pipelines.config.resolve import refuse
from pipelines.graph import Outputs, Stage, StageContext, digest_of, hash_files
from pipelines.runtime.session import Session

SPLITS: tuple[Split, ...] = ("train", "val")
FindConflicts = Callable[[Mapping[Split, Census]], Sequence[str]]


def write_stage(
    data: DataConfig,
    source: Path,
    session: Session,
    *,
    name: str = "write",
    channels: int = 3,
    find_conflicts: FindConflicts = lambda images: [],
) -> Stage:
    """The stage for `source`; it writes nothing if `find_conflicts` finds any in what is there.

    The model takes images of so many `channels`.

    Raises:
        DataError: When there is nothing usable.
    """
    about = f"the settings, for the images of {source}"

    def check(folder: Path) -> None:
        images = {split: read_manifest(folder / split).census for split in SPLITS}
        refuse(find_conflicts(images), about)

    chosen = {split: _choose(data, source, split) for split in SPLITS}
    settings = write_settings(data.write, channels)

    def run(context: StageContext) -> Outputs:
        with session.attempt(context):
            refuse(_plan(context, chosen, settings, session, find_conflicts), about)
            return _write(context, chosen, source, settings, session)

    return Stage(
        name=name,
        run=run,
        settings={
            "source": {split: digest_of(each.fingerprint) for split, each in chosen.items()},
            "selection": digest_of([repr(each.selection) for each in chosen.values()]),
            "write": data.write.model_dump(exclude={"max_unreadable"}),
            "channels": channels,
        },
        code=(_choose, _plan, _write),
        check=lambda context: check(context.directory),
        when_damaged=f"Its images would be written anew by the same command with --rerun {name}; "
        "what there is would be kept beside them",
    )


class Chosen(NamedTuple):
    """What is written of a split. The fingerprint is taken once: it looks at every file."""

    images: Source
    selection: Selection
    fingerprint: str


def _choose(data: DataConfig, source: Path, split: Split) -> Chosen:
    selection = Selection(
        split=split,
        val_fraction=data.val_fraction,
        classes=read_classes(data.classes),
        max_images=data.max_images,
    )
    columns = Columns(data.image_column, data.label_column, data.multi_label)
    images, selection = open_selected(source, selection, data.labels, columns)
    return Chosen(images, selection, images.fingerprint())


def _plan(
    context: StageContext,
    chosen: Mapping[Split, Chosen],
    settings: WriteSettings,
    session: Session,
    find_conflicts: FindConflicts,
) -> list[str]:
    """List both splits, keep the plans of what is to be written, and say what is wrong."""
    problems: list[str] = []
    found: dict[Split, Census] = {}
    for split, each in chosen.items():
        folder = context.directory / split
        try:
            found[split] = plan_collection(
                each.images,
                folder,
                each.selection,
                settings,
                note=session.screen.note,
                run=_mapper(session, folder, split),
                fingerprint=each.fingerprint,
            )
        except DataError as error:
            problems.append(f"{split}: {error}")
    return problems or [*find_conflicts(found)]


def _write(
    context: StageContext,
    chosen: Mapping[Split, Chosen],
    source: Path,
    settings: WriteSettings,
    session: Session,
) -> Outputs:
    outputs: Outputs = {}
    for split, each in chosen.items():
        folder = context.directory / split
        manifest = write_collection(
            each.images,
            str(source),
            folder,
            each.selection,
            settings,
            note=session.screen.note,
            run=_mapper(session, folder, split),
            fingerprint=each.fingerprint,
        )
        for name, reason in manifest.skipped:
            session.screen.note(f"skipped {name}: {reason}")
        outputs |= outputs_of(context.directory, split)
    return outputs


def write_settings(
    write: WriteConfig, channels: int, num_shards: int | None = None
) -> WriteSettings:
    """Settings of the writer from those of a pipeline; `num_shards` takes the place of their size.

    Raises:
        DataError: Naming all values that cannot be.
    """
    return WriteSettings(
        channels=channels,
        num_shards=num_shards,
        **write.model_dump(exclude={"shard_gb"}),
        shard_bytes=round(write.shard_gb * 1e9),
    )


def read_classes(path: Path | None) -> tuple[str, ...] | None:
    """The classes a text file names, one per line; raises DataError when it is not there."""
    if path is None:
        return None
    try:
        return tuple(line.split()[0] for line in path.read_text().splitlines() if line.strip())
    except OSError as error:
        raise DataError(f"class list {path} cannot be read: {error.strerror}") from error


def outputs_of(folder: Path, split: str) -> Outputs:
    """The manifest, and the files with the hashes that it holds."""
    manifest = read_manifest(folder / split)
    hashes = {f"{split}/{shard.name}": shard.sha256 for shard in manifest.shards}
    if (sets := manifest.label_sets) is not None:
        hashes[f"{split}/{sets.name}"] = sets.sha256
    return {**hash_files(folder, f"{split}/{MANIFEST}"), **hashes}


def _mapper(
    session: Session, folder: Path, split: Split
) -> Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]:
    def show() -> None:
        done, planned = progress(folder)
        if planned:
            part = SPLITS.index(split)
            session.screen.progress(
                (part + min(1.0, done / planned)) / len(SPLITS),
                f"{split}: {done:,} of {planned:,} images",
            )

    return lambda function, items: session.map(function, items, show)
