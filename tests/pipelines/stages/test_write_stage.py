"""The stage that writes images: what it hands on are the shards."""

import shutil
from pathlib import Path

import pytest

from convnextv2.data.writing import WriteSettings
from pipelines.graph import DamageError, Pipeline
from pipelines.stages.given_shards import shards_stage
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.graph.kitchen import flip, only


@pytest.mark.slow
def test_a_changed_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    shards, run_dir = tmp_path / "shards", tmp_path / "run"
    for split in ("train", "val"):
        write(Pictures(((16, 16),) * 9), shards / split, WriteSettings(mode="raw"))
    pipeline = Pipeline(run_dir, [shards_stage(shards)])
    assert [visit.status for visit in pipeline.run()] == ["run"]
    flip(only(shards, "val/*.beton"))
    advice = f"convnextv2 data verify {shards}/SPLIT reads all of them"
    with pytest.raises(DamageError, match=rf"val/train-00000-of-00001\.beton has .*{advice}"):
        pipeline.run()
    # Others of the same content will do.
    shutil.rmtree(shards / "val")
    write(Pictures(((16, 16),) * 9), shards / "val", WriteSettings(mode="raw"))
    assert pipeline.run()[-1].status == "done"
