"""ZeRO settings: what contradicts itself is named, and DeepSpeed itself takes what is rendered."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.batch_layout import BatchLayout
from cluster.engine.zero_config import Precision, ZeroSettings, deepspeed_config, find_problems

TOPOLOGY = BatchLayout(24, 3, 4)


def problems(
    *, use_gpu: bool = True, precision: Precision = "fp32", world_size: int = 8, **settings: Any
) -> list[str]:
    return find_problems(
        ZeroSettings(**settings), use_gpu=use_gpu, precision=precision, world_size=world_size
    )


GOOD: list[dict[str, Any]] = [
    {},
    {"stage": 0},
    {"stage": 1, "offload_optimizer": "cpu", "round_robin_gradients": True},
    {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 10_000_000},
    {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu", "pin_memory": False},
    {"stage": 3, "offload_optimizer": "cpu", "offload_param": "nvme", "nvme_path": "/nvme"},
    {"stage": 3, "hpz_partition_size": 8, "quantized_weights": True, "quantized_gradients": True},
    # Spelled out, but what it would be anyway.
    {"stage": 1, "prefetch_bucket_size": 50_000_000},
]


@pytest.mark.parametrize("settings", GOOD)
def test_what_fits_together_is_taken(settings: dict[str, Any]) -> None:
    assert problems(**settings) == []


def test_stage_0_in_bf16_is_for_cpus() -> None:
    """Where nothing is waited for."""
    assert problems(stage=0, precision="bf16", use_gpu=False) == []
    assert problems(stage=1, precision="bf16") == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage": 1, "offload_param": "cpu"}, ["offload_param: means something in stage 3 only"]),
        ({"stage": 2, "max_live_parameters": 5}, ["max_live_parameters: means something in"]),
        ({"stage": 0, "offload_optimizer": "cpu"}, ["offload_optimizer: stage 0 keeps whole"]),
        ({"stage": 0, "precision": "bf16"}, ["stage: 0 in bf16 has DeepSpeed wait"]),
        (
            {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/nvme"},
            ["offload_optimizer: checkpoints and the EMA are taken from memory"],
        ),
        ({"stage": 3, "offload_param": "nvme"}, ["nvme_path: offloading to nvme needs a folder"]),
        ({"stage": 3, "nvme_path": "/nvme"}, ["nvme_path: set, but nothing is offloaded"]),
        ({"stage": 3, "round_robin_gradients": True}, ["round_robin_gradients: stages 1 and 2"]),
        (
            {"stage": 3, "hpz_partition_size": 3},
            ["hpz_partition_size: 3 does not divide 8 workers"],
        ),
        (
            {"stage": 1, "quantized_weights": True, "use_gpu": False},
            [
                "quantized_weights: means something in stage 3 only",
                "quantized_weights: its kernels",
            ],
        ),
    ],
)
def test_contradictions_are_all_named(settings: dict[str, Any], expected: list[str]) -> None:
    found = problems(**settings)
    assert len(found) == len(expected)
    for problem, words in zip(found, expected, strict=True):
        assert problem.startswith(words)


@pytest.mark.parametrize("settings", [{"stage": 4}, {"stag": 1}, {"reduce_bucket_size": 0}])
def test_unknown_settings_and_values_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ZeroSettings(**settings)


def test_the_arithmetic_and_the_settings_are_spelled() -> None:
    config = deepspeed_config(ZeroSettings(stage=2), "bf16", 3.0, TOPOLOGY)
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.0, "our optimizer clips, without asking for the norm"
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"]["enabled"]


def test_deepspeed_clips_where_its_own_optimizer_steps() -> None:
    settings = ZeroSettings(stage=2, offload_optimizer="cpu")
    config = deepspeed_config(settings, "bf16", 3.0, TOPOLOGY)
    assert config["gradient_clipping"] == 3.0
    assert config["zero_optimization"]["compute_grad_norm"] is True


def test_offloading_and_zero_plus_plus_are_spelled() -> None:
    settings = ZeroSettings(
        stage=3,
        offload_optimizer="cpu",
        offload_param="nvme",
        nvme_path=Path("/nvme"),
        pin_memory=False,
        hpz_partition_size=8,
        quantized_weights=True,
    )
    section = deepspeed_config(settings, "bf16", 0.0, TOPOLOGY)["zero_optimization"]
    nvme = {"device": "nvme", "pin_memory": False, "nvme_path": "/nvme"}
    assert section["offload_param"] == nvme
    assert section["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert section["zero_hpz_partition_size"] == 8
    assert section["zero_quantized_weights"] is True
    assert section["zero_quantized_gradients"] is False


@pytest.mark.slow
@pytest.mark.parametrize("settings", GOOD)
@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_deepspeed_takes_every_key_and_means_the_same(
    settings: dict[str, Any], grad_clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = ZeroSettings(**settings)
    section = deepspeed_config(zero, "fp32", grad_clip, TOPOLOGY)["zero_optimization"]
    theirs = DeepSpeedZeroConfig(**section)
    assert theirs.stage == zero.stage
    assert theirs.reduce_bucket_size == zero.reduce_bucket_size
    assert theirs.round_robin_gradients == zero.round_robin_gradients
    assert theirs.zero_quantized_gradients == zero.quantized_gradients
    known = DeepSpeedZeroConfig.model_fields
    names = set(known) | {field.alias for field in known.values()}
    assert set(section) <= names, "DeepSpeed lets unknown keys pass"
