"""What the log says of pace: images/s, MFU, and the slowest worker; on a clock turned by hand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cluster.resilience import goodput
from cluster.resilience.goodput import Stopwatch
from convnextv2.fcmae import FCMAE
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.bench.flops import encoder_macs, fcmae_macs, peak_of
from pipelines.presets import load_preset
from pipelines.training import pace as module
from pipelines.training.job import TrainJob
from pipelines.training.pace import Pace, flops_of_image
from tests.pipelines.stages.jobs import made_up_job


class Clock:
    now = 100.0

    def read(self) -> float:
        return self.now


class Task(nn.Module):
    """A forward pass of two seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, batch: Tensor) -> Tensor:
        self.clock.now += 2
        return batch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    times = SimpleNamespace(perf_counter=clock.read, monotonic=clock.read)
    monkeypatch.setattr(module, "time", times)
    monkeypatch.setattr(goodput, "time", times)
    return clock


def job_of(recipe: str, *settings: str) -> TrainJob:
    config = load_preset(
        "demo", [f"{recipe}.global_batch_size=64", f"{recipe}.micro_batch_size=32", *settings]
    )
    return made_up_job(config, getattr(config, recipe), Path("nowhere"))


def three_steps(clock: Clock, watch: Stopwatch, task: Task) -> None:
    """Each of 10 seconds: one for its data, two forward, the rest waiting for others."""
    for _ in range(3):
        with watch.phase("data"):
            clock.now += 1
        task(torch.zeros(1))
        clock.now += 7


def test_a_worker_needs_its_data_and_its_forward_passes(clock: Clock) -> None:
    watch, task = Stopwatch(), Task(clock)
    pace = Pace(job_of("finetune"), watch)
    pace.watch(task)
    with watch.phase("data"):
        clock.now += 50  # Before: not of these steps.
    pace.begin(5)
    three_steps(clock, watch, task)
    task.eval()
    task(torch.zeros(1))  # Evaluation is not a step.
    assert pace.own_seconds(8) == 3.0
    assert pace.values(8, [3.0]) == {"images_per_second": 3 * 64 / 32}
    pace.begin(8)
    task.train()
    three_steps(clock, watch, task)
    assert (pace.own_seconds(11), pace.values(11, [3.0])["images_per_second"]) == (3.0, 6.4)


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        ([1.0, 1.0, 1.5, 1.0], {"slowest_rank": 2, "slowest_seconds": 1.5, "median_seconds": 1.0}),
        ([2.0, 1.0], {"slowest_rank": 0, "slowest_seconds": 2.0, "median_seconds": 1.5}),
        # Alone there is nobody to compare with; of a worker that has not measured nothing is known.
        ([1.0], {}),
        ([1.0, 0.0], {}),
    ],
)
def test_the_slowest_worker_is_named(
    each: Sequence[float], expected: dict[str, float], clock: Clock
) -> None:
    pace = Pace(job_of("finetune"), Stopwatch())
    pace.begin(0)
    clock.now += 1
    values = pace.values(1, each)
    assert values == {"images_per_second": 64.0, **expected}


def test_mfu_is_told_for_gpus_whose_peak_is_known(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of("finetune", "cluster.use_gpu=true", "finetune.dtype=bf16")
    pace = Pace(job, Stopwatch())
    pace.watch(Task(clock))
    pace.begin(0)
    clock.now += 2
    name = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    rate = 10 * 64 / 2
    flops = 6 * encoder_macs("pocket", 32, stem_stride=1)
    assert pace.values(10, [1.0, 1.0])["mfu"] == pytest.approx(rate * flops / (2 * 989e12))
    name = "NVIDIA GeForce 256"
    assert "mfu" not in pace.values(10, [1.0, 1.0])


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("Quadro", None)],
)
def test_peaks_are_found_by_name(device: str, peak: float | None) -> None:
    assert peak_of(device) == peak


def test_flops_are_those_of_what_is_trained() -> None:
    task = nn.Identity()
    whole = flops_of_image(job_of("finetune"), task)
    assert whole == 6 * encoder_macs("pocket", 32, stem_stride=1)
    head = flops_of_image(job_of("finetune", "finetune.trainable=head"), task)
    assert head == whole / 3
    model = FCMAE.from_size("pocket", image_size=32, patch_size=8, stem_stride=1, decoder_dim=64)
    pretraining = PretrainTask(model, seed=0)
    assert flops_of_image(job_of("pretrain"), pretraining) == 6 * fcmae_macs("pocket", model)
    other = job_of("pretrain", "pretrain.decoder=unet", "pretrain.decoder_dim=64")
    assert flops_of_image(other, pretraining) == 0.0
