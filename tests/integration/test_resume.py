"""A fine-tuning with everything on, killed and resumed, is the straight one, byte for byte."""

import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Start, event_log, launcher, output

pytestmark = pytest.mark.soak

# 48 images in 3 steps of 16 an epoch, in two micro batches a worker.
EVERYTHING = (
    "finetune.duration=4 epochs",
    "finetune.micro_batch_size=4",
    "finetune.scratch_baseline=false",
    "finetune.ema_decay=0.9",
    "finetune.augment.mixup=0.8",
    "finetune.augment.cutmix=1.0",
    "finetune.layer_decay=0.8",
    "finetune.checkpoint_every=1 step",
    "finetune.evaluate_every=2 steps",
    "pretrain.duration=1 step",
    "pretrain.warmup=0 epochs",
)
FILES = ("model.safetensors", "model-ema.safetensors")


def contents(run_dir: Path) -> list[bytes]:
    return [output(run_dir, "finetune", name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def pretrained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards and the pretrained weights that every fine-tuning here starts from."""
    run_dir = tmp_path_factory.mktemp("pretrained")
    with launcher(photos) as start:
        start("pretrain", run_dir, settings=EVERYTHING).finish()
    return run_dir


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_killed_in_an_epoch_and_at_its_end(
    stage: int, start: Start, pretrained: Path, tmp_path: Path
) -> None:
    settings = (*EVERYTHING, f"cluster.zero.stage={stage}")
    straight = Path(shutil.copytree(pretrained, tmp_path / "straight"))
    start("finetune", straight, settings=settings).finish()
    expected = contents(straight)
    assert expected[0] != expected[1]
    # Step 6 is the end of an epoch, 8 lies within one.
    for step in (6, 8):
        killed = Path(shutil.copytree(pretrained, tmp_path / f"killed-{step}"))
        marker = tmp_path / f"fired-{step}"
        fault = f"sigkill rank=1 step={step} marker={marker}"
        start("finetune", killed, settings=settings, fault=fault).finish()
        assert marker.exists()
        begun = [line["step"] for line in event_log(killed, "finetune") if line["kind"] == "start"]
        assert begun[0] == 0
        assert 0 < begun[1] <= step
        assert contents(killed) == expected
