"""Stages `write` and `write-intermediate`: images as shards, written from a source or given."""

from functools import partial

from convnextv2.data.collection import DataError
from pipelines.config import DataConfig
from pipelines.graph import Stage
from pipelines.stages.data_conflicts import find_data_conflicts
from pipelines.stages.given_shards import holds_shards, shards_stage
from pipelines.stages.setup import StageSetup
from pipelines.stages.write_data import write_stage


def build(setup: StageSetup) -> Stage:
    """The stage for the images of its section.

    Raises:
        DataError: When there is nothing usable.
    """
    config, kind = setup.config, setup.kind
    data = setup.section(DataConfig)
    source = setup.source if kind.section == "data" else data.source
    if source is None:
        raise DataError(
            f"no data for the intermediate fine-tuning: give --set {kind.section}.source=DIR"
        )
    if holds_shards(source):
        return shards_stage(source, kind.name)
    return write_stage(
        data,
        source,
        setup.session,
        name=kind.name,
        channels=config.model.in_channels,
        find_conflicts=partial(find_data_conflicts, config, kind.name, setup.wanted, source),
    )
