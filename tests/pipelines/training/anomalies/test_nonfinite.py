"""A step that was left out is written down by the worker to blame, and runs again from the file."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnextv2.data.writing import WriteSettings
from convnextv2.tasks import TaskOutput
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.presets import load_preset
from pipelines.runtime.events import Skipped, read_events
from pipelines.stages import pretrain
from pipelines.training.anomalies.nonfinite import FOLDER, MOST, LeftOut, job_of, read
from pipelines.training.anomalies.replay import Replayed, replay, watched
from pipelines.training.job import TrainJob
from pipelines.training.loop import train
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.commands.user import run
from tests.pipelines.stages.jobs import made_up_job

IMAGES, POISON = 8, 5
SETTINGS = (
    "model.image_size=16",
    "model.patch_size=8",
    "model.stem_stride=1",
    "pretrain.duration=2 epochs",
    "pretrain.warmup=0 epochs",
    "pretrain.train_images=null",
    "pretrain.global_batch_size=4",
    "pretrain.micro_batch_size=1",
    "pretrain.checkpoint_every=1 steps",
    "pretrain.keep_last=9",
    "pretrain.decoder_dim=16",
    "log_every=1",
)


class Poisoned(PretrainTask):
    """One sample's gradient is NaN from a layer of the encoder on, and its loss is fine."""

    poisoned = False

    def forward(self, batch: Batch) -> TaskOutput:
        self.poisoned = POISON in batch.indices.tolist()
        return super().forward(batch)


def build_task(job: TrainJob) -> nn.Module:
    plain = pretrain.build_task(job)
    assert isinstance(plain, PretrainTask)
    task = Poisoned(plain.model, seed=job.seed, normalization=job.normalization)

    def poison(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if task.poisoned and output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.nan)

    *_, last = task.model.encoder.stages[1].children()
    last.register_forward_hook(poison)
    return task


def job_in(folder: Path, directory: Path) -> TrainJob:
    config = load_preset("demo", SETTINGS)
    directory.mkdir(exist_ok=True)
    return made_up_job(
        config, config.pretrain, directory, build_task=build_task, shards=folder, seed=3
    )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage's folder after four steps of two workers; one in each epoch was left out."""
    root = tmp_path_factory.mktemp("nonfinite")
    write(Pictures(((16, 16),) * IMAGES), root / "train", WriteSettings(mode="raw"))
    run_group(train, 2, root, job_in(root / "train", root / "stage"))
    return root / "stage"


def files(stage: Path) -> dict[int, list[Path]]:
    """By step, those without the poisoned sample first."""
    found: dict[int, list[Path]] = {}
    for path in (stage / FOLDER).iterdir():
        found.setdefault(read(path).step, []).append(path)
    return {step: sorted(paths, key=has_poison) for step, paths in sorted(found.items())}


def has_poison(path: Path) -> bool:
    return [POISON] in read(path).micro_batches


@pytest.mark.slow
def test_the_workers_write_their_samples_down(stage: Path) -> None:
    skipped = [event.step for event in read_events(stage) if isinstance(event, Skipped)]
    assert len(skipped) == 2, "the sample came once in each of two epochs"
    assert list(files(stage)) == skipped
    for step, paths in files(stage).items():
        assert {path.name for path in paths} == {f"step-{step}-rank-{rank}.json" for rank in (0, 1)}
        assert [has_poison(path) for path in paths] == [False, True]
        for path in paths:
            left_out = read(path)
            assert [len(samples) for samples in left_out.micro_batches] == [1, 1]
            assert left_out.epoch == (step - 1) // 2
            assert np.isfinite(float(left_out.loss))


@pytest.mark.slow
def test_a_replay_is_that_very_step_and_names_the_layer(stage: Path) -> None:
    for path in itertools.chain(*files(stage).values()):
        left_out = read(path)
        found = replay(job_of(left_out, stage, build_task), left_out)
        assert found.weights_of == left_out.step - 1
        # The same weights, images, crops and masks: the loss is the one of training.
        assert np.mean(found.losses) == pytest.approx(float(left_out.loss), rel=1e-4)
        assert (found.in_weights, found.in_forward) == ("", "")
        if has_poison(path):
            assert found.in_backward.startswith("model.encoder.stages.1.")
            assert np.isnan(list(found.gradient_norms.values())).all()
        else:
            assert found.in_backward == ""


@pytest.mark.slow
def test_the_command_replays_on_the_weights_there_are(
    stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the fault of the test the step is fine, and the command says so."""
    _, path = next(iter(files(stage).values()))
    left_out = read(path)
    assert run("replay", path, "--json") == 0
    found = Replayed(**json.loads(capsys.readouterr().out))
    assert np.mean(found.losses) == pytest.approx(float(left_out.loss), rel=1e-4)
    assert (found.weights_of, found.in_backward) == (left_out.step - 1, "")
    assert np.isfinite(list(found.gradient_norms.values())).all()
    assert run("replay", path) == 0
    printed = capsys.readouterr().out
    assert f"step {left_out.step} of worker {left_out.rank}" in printed
    assert f"samples {POISON}" in printed
    assert "first gradient that is not finite: none" in printed


def test_what_is_no_file_of_a_step_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text('{"step": 1}')
    assert run("replay", tmp_path / "x.json") == 1
    assert "nonfinite/step-N-rank-R.json" in capsys.readouterr().err


def test_the_innermost_layer_is_named() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().neg().sqrt()

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), Root()), nn.Linear(2, 1))
    found = Replayed(0)
    with watched(model, found):
        model(torch.ones(1, 2)).sum().backward()
    assert (found.in_forward, found.in_backward) == ("1.1", "2.weight")
    model.zero_grad()
    with watched(model, found := Replayed(0)):
        model[0](torch.ones(1, 2)).sum().backward()
    assert (found.in_forward, found.in_backward) == ("", "")


def left_out(step: int) -> LeftOut:
    return LeftOut(step=step, rank=0, epoch=0, loss="nan", micro_batches=[[1]], settings={})


def test_there_are_at_most_so_many_files_and_a_full_disk_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(MOST + 5):
        left_out(step).write(tmp_path)
    assert len(list((tmp_path / FOLDER).iterdir())) == MOST

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    (tmp_path / "other").mkdir()
    left_out(1).write(tmp_path / "other")
    assert "the samples of step 1 are not noted: [Errno 28]" in caplog.text
