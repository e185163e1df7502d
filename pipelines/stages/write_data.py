"""Stage `write`: the image collection as train.beton and val.beton."""

from pathlib import Path

from convnextv2.data.sources import Source, Split, open_source
from convnextv2.data.write import WriteSettings, manifest_path, read_manifest, write_beton
from pipelines.config import PipelineConfig
from pipelines.graph import Outputs, Place, Stage, digest_of, hash_files
from pipelines.session import Session

SPLITS: tuple[Split, ...] = ("train", "val")
CODE = ("convnextv2.data.sources", "convnextv2.data.watched_writer", "convnextv2.data.write")


def write_stage(config: PipelineConfig, source: Path, session: Session) -> Stage:
    """The stage for `source`; raises DataError when there is nothing usable."""
    sources = {split: open_source(source, split) for split in SPLITS}

    def run(place: Place) -> Outputs:
        outputs: Outputs = {}
        with session.attempt(place):
            for part, (split, images) in enumerate(sources.items()):
                outputs |= _write(config, images, split, place, session, part)
        return outputs

    return Stage(
        name="write",
        run=run,
        settings={
            "source": {split: digest_of(images.fingerprint()) for split, images in sources.items()},
            "write": config.data.write.model_dump(exclude={"num_workers", "max_unreadable"}),
        },
        code=CODE,
    )


def _write(
    config: PipelineConfig,
    images: Source,
    split: Split,
    place: Place,
    session: Session,
    part: int,
) -> Outputs:
    beton = place.directory / f"{split}.beton"
    if not manifest_path(beton).exists():
        manifest = write_beton(
            images,
            beton,
            WriteSettings(**config.data.write.model_dump()),
            lambda done: session.screen.progress(
                (part + min(1.0, done / len(images))) / len(SPLITS),
                f"{split}: {done:,} of {len(images):,} images",
            ),
        )
        for _, reason in manifest.skipped:
            session.screen.note(f"skipped {reason}")
    return {
        beton.name: read_manifest(beton).sha256,
        **hash_files(place.directory, manifest_path(beton).name),
    }
