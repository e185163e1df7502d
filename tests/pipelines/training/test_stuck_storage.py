"""The loop on a real file system that is stuck for some steps, as a mount without its server is."""

import itertools
import threading
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from cluster.resilience import fault_injection
from convnextv2.data.writing import WriteSettings
from pipelines.presets import load_preset
from pipelines.runtime.events import Checkpoint, Point, Skipped, read_events
from pipelines.stages import pretrain
from pipelines.training.anomalies import nonfinite
from pipelines.training.checkpoints import CHECKPOINTS
from pipelines.training.data import sample_log
from pipelines.training.job import TrainJob
from pipelines.training.loop import train
from tests.cluster.checkpoint.disk import Disk, mounted
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.stages.jobs import made_up_job

PATIENCE = 30.0  # Seconds until a loop that waits for the storage is let go on, and fails.
FROZEN, NAN, SAVED, THAWED, STEPS = 5, 7, 8, 14, 16
SETTINGS = (
    "model.image_size=16",
    "model.patch_size=8",
    "model.stem_stride=1",
    f"pretrain.duration={STEPS} steps",
    "pretrain.warmup=0 epochs",
    "pretrain.train_images=null",
    "pretrain.global_batch_size=2",
    "pretrain.micro_batch_size=2",
    f"pretrain.checkpoint_every={SAVED} steps",
    "pretrain.decoder_dim=16",
    "log_every=1",
    "cluster.num_workers=1",
)


def build_task(disk: Disk, job: TrainJob) -> nn.Module:
    """A task before whose forward passes, one a step, the disk stops and works again."""
    task, steps = pretrain.build_task(job), itertools.count(1)
    give_up = threading.Timer(PATIENCE, disk.thaw)

    def strike(module: nn.Module, inputs: object) -> None:
        step = next(steps)
        if step == FROZEN:
            disk.freeze()
            give_up.start()
        elif step == THAWED:
            assert give_up.is_alive(), "training waited for the storage"
            give_up.cancel()
            disk.thaw()

    task.register_forward_pre_hook(strike)
    return task


@pytest.mark.slow
def test_training_goes_on_while_its_storage_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sample_log.VARIABLE, "1")
    nan = f"nan rank=0 step={NAN - 1} marker={tmp_path / 'nan'}"
    monkeypatch.setenv(fault_injection.VARIABLE, nan)
    write(Pictures(((16, 16),) * 8), tmp_path / "train", WriteSettings(mode="raw"))
    with mounted(tmp_path, megabytes=64) as disk:
        config, stage = load_preset("demo", SETTINGS), disk.folder / "stage"
        stage.mkdir()
        job = made_up_job(
            config,
            config.pretrain,
            stage,
            build_task=partial(build_task, disk),
            log=stage / "log",
            shards=tmp_path / "train",
        )
        run_group(train, 1, tmp_path, job)
        events = read_events(stage)
        steps = [each.step for each in events if isinstance(each, Point | Skipped)]
        assert steps == list(range(1, STEPS + 1))
        assert [each.step for each in events if isinstance(each, Skipped)] == [NAN]
        assert (stage / nonfinite.FOLDER / f"step-{NAN}-rank-0.json").is_file()
        assert events[-1].kind == "end", "nothing is left in memory"
        [saved, _] = [each for each in events if isinstance(each, Checkpoint)]
        assert saved.step == SAVED, "the save that met the stuck disk is whole"
        assert (stage / CHECKPOINTS / f"step-{SAVED:08d}").is_dir()
        [samples] = (stage / sample_log.FOLDER).iterdir()
        assert len(samples.read_text().splitlines()) == 1 + STEPS
