"""A worker that stands by has imported all that its job will need, and nothing of the compiler."""

import sys
from pathlib import Path

import pytest

from convnextv2.data.writing import WriteSettings
from pipelines.presets import load_preset
from pipelines.training.job import TrainJob
from pipelines.training.loop import train
from pipelines.training.standby import prepare
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.stages.jobs import made_up_job

SETTINGS = (
    "finetune.duration=2 steps",
    "finetune.warmup=0 steps",
    "finetune.global_batch_size=4",
    "finetune.micro_batch_size=4",
    "cluster.num_workers=1",
    "finetune.labels_per_class=null",
)
FEW = 5


def train_prepared(job: TrainJob) -> None:
    """Train, and write down what was imported before and after the order to do so."""
    prepare(job)
    prepared = set(sys.modules)
    train(job)
    late = set(sys.modules) - prepared
    (job.directory / "late").write_text("\n".join(sorted(late)))
    (job.directory / "all").write_text("\n".join(sys.modules))


@pytest.mark.slow
def test_training_imports_next_to_nothing_that_was_not_prepared(tmp_path: Path) -> None:
    write(Pictures(((32, 32),) * 8), tmp_path / "train", WriteSettings(mode="raw"))
    config = load_preset("demo", SETTINGS)
    run_group(train_prepared, 1, tmp_path, made_up_job(config, config.finetune, tmp_path))
    late = (tmp_path / "late").read_text().split()
    assert len(late) <= FEW, late
    assert "torch._dynamo" not in (tmp_path / "all").read_text().split()
