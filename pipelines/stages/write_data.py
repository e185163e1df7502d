"""Stage `write`: the image collection as folders of shards, train/ and val/."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from convnextv2.data.collection import DataError, Source, Split
from convnextv2.data.manifest import MANIFEST, Manifest, read_manifest
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.data.writing.write import progress
from pipelines.config import PipelineConfig, WriteConfig
from pipelines.graph import Outputs, Place, Stage, digest_of, hash_files
from pipelines.session import Session

SPLITS: tuple[Split, ...] = ("train", "val")
CODE = ("convnextv2.data.pixels", "convnextv2.data.selection", "convnextv2.data.sources",
        "convnextv2.data.writing")  # fmt: skip


def write_stage(config: PipelineConfig, source: Path, session: Session) -> Stage:
    """The stage for `source`; raises DataError when there is nothing usable."""
    if all((source / split / MANIFEST).exists() for split in SPLITS):
        return _written_already(source)
    chosen = {split: _open(config, source, split) for split in SPLITS}

    def run(place: Place) -> Outputs:
        outputs: Outputs = {}
        with session.attempt(place):
            for split, (images, selection) in chosen.items():
                manifest = write_collection(
                    images,
                    str(source),
                    place.directory / split,
                    selection,
                    write_settings(config.data.write),
                    note=session.screen.note,
                    run=_mapper(session, place.directory / split, split),
                )
                for name, reason in manifest.skipped:
                    session.screen.note(f"skipped {name}: {reason}")
                outputs |= _outputs(place.directory, split)
        return outputs

    return Stage(
        name="write",
        run=run,
        settings={
            "source": {
                split: digest_of(images.fingerprint()) for split, (images, _) in chosen.items()
            },
            "selection": digest_of([repr(selection) for _, selection in chosen.values()]),
            "write": config.data.write.model_dump(exclude={"max_unreadable"}),
        },
        code=CODE,
    )


def write_settings(write: WriteConfig) -> WriteSettings:
    """Settings of the writer from those of a pipeline."""
    return WriteSettings(
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


def _open(config: PipelineConfig, source: Path, split: Split) -> tuple[Source, Selection]:
    data = config.data
    selection = Selection(
        split=split,
        hold_out=data.hold_out,
        classes=read_classes(data.classes),
        limit=data.limit,
    )
    return open_selected(source, selection, data.labels)


def _written_already(source: Path) -> Stage:
    """A stage that points to shards written before, by `convnextv2 data write`."""
    manifests: dict[str, Manifest] = {split: read_manifest(source / split) for split in SPLITS}

    def run(place: Place) -> Outputs:
        for split in SPLITS:
            link = place.directory / split
            link.unlink(missing_ok=True)
            link.symlink_to((source / split).resolve(), target_is_directory=True)
        return {name: hashed for split in SPLITS
                for name, hashed in _outputs(place.directory, split).items()}  # fmt: skip

    return Stage(
        name="write",
        run=run,
        settings={split: manifest.fingerprint for split, manifest in manifests.items()},
    )


def _outputs(folder: Path, split: str) -> Outputs:
    """The manifest names every shard with its hash."""
    return hash_files(folder, f"{split}/{MANIFEST}")


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
