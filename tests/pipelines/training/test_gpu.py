"""What a worker refuses to begin on its GPU, and what it says would work."""

import re
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.presets import load_preset
from pipelines.training import gpu
from pipelines.training.gpu import DoesNotFit, check_gpu, memory_problem
from pipelines.training.job import TrainJob
from tests.cluster.fake_gpu import visible_gpu
from tests.pipelines.stages.jobs import made_up_job

GPU = torch.device("cuda", 1)
GIB = 2**30


def job(folder: Path, *overrides: str, preset: str = "imagenet1k-base") -> TrainJob:
    workers = ["cluster.num_workers=8", "cluster.use_gpu=true", "pretrain.dtype=bf16"]
    config = load_preset(preset, [*workers, *overrides])
    return made_up_job(config, config.pretrain, folder)


LARGE_IMAGES = (
    "model.image_size=1792",
    "pretrain.global_batch_size=64",
    "pretrain.micro_batch_size=8",
)


@pytest.mark.parametrize(
    ("free", "overrides", "would_do"),
    [
        (12, (), "256 or activation_checkpointing=[0, 1, 2, 3] would do"),
        (2.2, (), "32 would do"),
        (2, LARGE_IMAGES, "2 with activation_checkpointing=[0, 1, 2, 3] would do"),
        (0.5, (), "a larger GPU, or a smaller model.size, would do"),
    ],
)
def test_too_little_memory_names_what_fits(
    free: float, overrides: tuple[str, ...], would_do: str, tmp_path: Path
) -> None:
    made_up = job(tmp_path, *overrides)
    said = memory_problem(made_up, int(free * GIB))
    assert re.match(
        rf"micro_batch_size: \d+ images of {made_up.model.image_size} px take about [\d.]+ GiB "
        rf"with model\.size base in bf16, more than 90% of the {free:.1f} GiB that are free on "
        r"this worker's GPU; ",
        said,
    )
    assert said.endswith(f"; {would_do}")


def test_the_recipes_own_image_size_counts(tmp_path: Path) -> None:
    config = load_preset("imagenet22k-huge-512", ["cluster.num_workers=8"])
    said = memory_problem(made_up_job(config, config.finetune, tmp_path), 8 * GIB)
    assert " images of 512 px take about " in said


def test_a_probe_keeps_nothing_for_its_backward_pass(tmp_path: Path) -> None:
    config = load_preset("linear-probe-base", ["linear_probe.micro_batch_size=128"])
    probe = made_up_job(config, config.linear_probe, tmp_path)
    assert memory_problem(probe, 8 * GIB) == ""
    assert config.linear_probe is not None
    everything = config.linear_probe.model_copy(update={"trainable": "all"})
    assert memory_problem(made_up_job(config, everything, tmp_path), 8 * GIB) != ""


def test_others_on_the_gpu_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visible_gpu(monkeypatch)
    assert check_gpu(job(tmp_path), GPU) == ""
    visible_gpu(monkeypatch, free=40.0)
    others = "other processes use about 38 of its 79 GiB (nvidia-smi lists them)"
    assert check_gpu(job(tmp_path), GPU) == others
    visible_gpu(monkeypatch, free=12.0)
    monkeypatch.setattr(gpu, "RELEASE_SECONDS", 0.0)
    with pytest.raises(DoesNotFit, match=r"; 256 or .*; other processes use about 66 of its 79 "):
        check_gpu(job(tmp_path), GPU)


def test_memory_that_is_still_being_released_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible_gpu(monkeypatch)
    free = iter((12.0, 12.0, 78.0))
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (int(next(free) * GIB), int(79.2 * GIB))
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert check_gpu(job(tmp_path), GPU) == ""
    assert list(free) == []


def test_without_triton_plain_kernels_have_to_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(DoesNotFit, match=r"^Triton cannot be imported.*CONVNEXTV2_KERNELS=plain"):
        check_gpu(job(tmp_path), GPU)
    monkeypatch.setenv("CONVNEXTV2_KERNELS", "plain")
    check_gpu(job(tmp_path), GPU)


def test_on_a_cpu_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert check_gpu(job(tmp_path), torch.device("cpu")) == ""
