"""Folders of finished shards that are given as data: held against the settings, and as a stage."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from convnextv2.data.collection import RGB, DataError, PixelFormat, Split
from convnextv2.data.shards.manifest import MANIFEST, Manifest, read_manifest
from pipelines.config import DataConfig, PipelineConfig
from pipelines.config.checks import find_colour_conflicts
from pipelines.graph import Outputs, Stage, StageContext
from pipelines.graph.kinds import KINDS
from pipelines.graph.outline import outline
from pipelines.stages.data_conflicts import collection_of, find_data_conflicts
from pipelines.stages.write_data import SPLITS, outputs_of

Manifests = Mapping[Split, Manifest]


def holds_shards(source: Path) -> bool:
    """Whether both splits of a collection are finished shards, as of `convnextv2 data write`."""
    return all((source / split / MANIFEST).exists() for split in SPLITS)


def find_shards_conflicts(
    config: PipelineConfig, wanted: set[str], source: Path | None = None
) -> list[str]:
    """All that is wrong for the `wanted` stages with the shards that a configuration names.

    `source` has the images, if it is not `data.source`.
    """
    problems: list[str] = []
    for name in outline(config):
        data = KINDS[name].settings(config)
        if name not in wanted or not isinstance(data, DataConfig):
            continue
        folder = source if source is not None and data is config.data else data.source
        if folder is not None and holds_shards(folder):
            problems += _problems(config, name, wanted, folder)
    return problems


def shards_stage(source: Path, name: str = "write") -> Stage:
    """A stage that points to the shards.

    Raises:
        DataError: When a manifest cannot be read.
    """
    manifests = _manifests(source)

    def run(context: StageContext) -> Outputs:
        for split in SPLITS:
            link = context.directory / split
            link.unlink(missing_ok=True)
            link.symlink_to((source / split).resolve(), target_is_directory=True)
        return {name: hashed for split in SPLITS
                for name, hashed in outputs_of(context.directory, split).items()}  # fmt: skip

    return Stage(
        name=name,
        run=run,
        settings={split: manifest.fingerprint for split, manifest in manifests.items()},
        when_damaged=f"It belongs to the shards in {source}: convnextv2 data verify {source}/SPLIT "
        "reads all of them, convnextv2 data write makes new ones",
    )


def _problems(
    config: PipelineConfig, written: str, wanted: set[str], source: Path
) -> Iterator[str]:
    try:
        manifests = _manifests(source)
    except DataError as error:
        yield f"{KINDS[written].section}.source: {error}"
        return
    yield from _pixels(config, written, source, manifests)
    images = {split: manifest.census for split, manifest in manifests.items()}
    yield from find_data_conflicts(config, written, wanted, source, images)


def _manifests(source: Path) -> Manifests:
    return {split: read_manifest(source / split) for split in SPLITS}


def _pixels(
    config: PipelineConfig, written: str, source: Path, manifests: Manifests
) -> Iterator[str]:
    """Channels and bits that the settings, or the other split, do not have."""
    section, bits = KINDS[written].section, collection_of(config, written).write.bits
    train, val = (manifests[split].pixel_format for split in SPLITS)
    if train != val:
        yield (
            f"{section}.source: {source}/train has images of {train}, {source}/val of {val}; write "
            f"one of them again with data write --channels {train.channels} --bits {train.bits}"
        )
    told = PixelFormat(config.model.in_channels, bits or RGB.bits)
    if train.channels != told.channels:
        yield (
            f"model.in_channels: {told.channels}, and the images of {source} have {train}; "
            f"model.in_channels={train.channels} would work"
        )
    elif told.channels == RGB.channels and train.bits > told.bits:
        yield (
            f"{section}.write.bits: {told.bits}, and the images of {source} have {train}; "
            f"{section}.write.bits={train.bits} would work"
        )
    if train != RGB and told == RGB:
        # What the settings would be refused for next, once they say what the images are.
        yield from find_colour_conflicts(config, section, f"the images of {source} have {train}")
