"""Optimizer groups and schedule, with the expected values written out from the paper's recipes."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.recipe.layer_decay import layer_of
from convnextv2.recipe.optimizer import GroupRule, is_exempt, parameter_groups
from convnextv2.recipe.schedule import WarmupCosine, scaled_lr
from convnextv2.tasks.classify import ClassifyTask
from convnextv2.tasks.pretrain import PretrainTask

ATTO = (2, 2, 6, 2)

PRETRAINING = GroupRule(weight_decay=0.05)
FINE_TUNING = GroupRule(weight_decay=0.3, exempt="all-but-1d-and-grn", layer_decay=0.9)


@pytest.fixture(scope="module")
def classifier() -> ConvNeXtV2:
    with torch.device("meta"):
        return ConvNeXtV2.from_size("atto")


@pytest.fixture(scope="module")
def fcmae() -> FCMAE:
    with torch.device("meta"):
        return FCMAE.from_size("atto")


def names_with(model: nn.Module, rule: GroupRule, weight_decay: float) -> set[str]:
    chosen = {
        id(parameter)
        for group in parameter_groups(model, rule, ATTO)
        if group["weight_decay"] == weight_decay
        for parameter in group["params"]
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_without_layer_decay_every_scale_is_one(fcmae: FCMAE) -> None:
    assert {group["lr_scale"] for group in parameter_groups(fcmae, PRETRAINING, ATTO)} == {1.0}


@pytest.mark.parametrize("rule", [PRETRAINING, FINE_TUNING])
def test_every_parameter_is_in_exactly_one_group(
    classifier: ConvNeXtV2, fcmae: FCMAE, rule: GroupRule
) -> None:
    for model in (classifier, fcmae):
        groups = parameter_groups(model, rule, ATTO)
        counts = Counter(id(parameter) for group in groups for parameter in group["params"])
        assert counts == Counter(id(parameter) for parameter in model.parameters())
        settings = [(group["weight_decay"], group["lr_scale"]) for group in groups]
        assert len(set(settings)) == len(settings)  # Equal settings are merged.


def test_pretraining_decays_all_but_vectors_and_biases(fcmae: FCMAE) -> None:
    # As the released recipe does: GRN and the mask token are decayed.
    spared = names_with(fcmae, PRETRAINING, 0.0)
    expected = {name for name, parameter in fcmae.named_parameters() if parameter.ndim == 1}
    assert spared == expected
    decayed = names_with(fcmae, PRETRAINING, 0.05)
    assert {"mask_token", "proj.weight", "pred.weight", "decoder.0.grn.beta"} <= decayed
    assert {"encoder.stages.0.0.grn.gamma", "encoder.stages.0.0.dwconv.weight"} <= decayed
    assert {"pred.bias", "encoder.stages.0.0.norm.weight"} <= spared
    assert not spared & decayed


def test_fine_tuning_spares_grn_as_well(classifier: ConvNeXtV2) -> None:
    spared = names_with(classifier, FINE_TUNING, 0.0)
    decayed = names_with(classifier, FINE_TUNING, 0.3)
    kinds = {name.rpartition(".")[2] for name in spared}
    assert kinds == {"weight", "bias", "gamma", "beta"}
    assert {name for name in decayed if "grn" in name or name.endswith(".bias")} == set()
    # What is decayed: one stem, three downsamplings, three matrices per block, one head.
    assert len(decayed) == 1 + 3 + 3 * 12 + 1
    assert {"head.weight", "stages.3.1.pwconv2.weight", "downsample_layers.2.1.weight"} <= decayed
    assert {"norm.weight", "downsample_layers.0.1.weight", "stages.1.0.grn.beta"} <= spared


def test_a_bias_is_spared_whatever_its_shape() -> None:
    assert is_exempt("conv.bias", nn.Parameter(torch.zeros(1, 4)), "all-but-1d")
    assert not is_exempt("conv.weight", nn.Parameter(torch.zeros(1, 4)), "all-but-1d")


def test_shards_are_judged_by_the_shape_of_the_whole() -> None:
    # ZeRO-3 leaves an empty vector in place of the matrix and notes the shape it had.
    shard = nn.Parameter(torch.empty(0))
    shard.ds_shape = torch.Size([4, 4])  # type: ignore[attr-defined]
    assert not is_exempt("pwconv1.weight", shard, "all-but-1d")
    shard.ds_shape = torch.Size([4])  # type: ignore[attr-defined]
    assert is_exempt("norm.weight", shard, "all-but-1d")


def test_frozen_parameters_are_in_no_group() -> None:
    model = ConvNeXtV2.from_size("pocket", num_classes=2)
    model.stages.requires_grad_(False)
    groups = parameter_groups(model, FINE_TUNING, model.depths)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        parameter_groups(model, FINE_TUNING, model.depths)


def test_a_linear_probe_has_the_heads_two_groups() -> None:
    model = ConvNeXtV2.from_size("pocket", num_classes=2).requires_grad_(False)
    assert model.head is not None
    model.head.requires_grad_(True)
    rule = GroupRule(weight_decay=0.1)
    groups = parameter_groups(model, rule, model.depths)
    assert [(g["weight_decay"], g["lr_scale"], g["params"]) for g in groups] == [
        (0.1, 1.0, [model.head.weight]),
        (0.0, 1.0, [model.head.bias]),
    ]


def test_the_tasks_say_the_depths_the_groups_need() -> None:
    fcmae = FCMAE.from_size("pocket", image_size=32, patch_size=8, stem_stride=1, decoder_dim=8)
    classify = ClassifyTask(ConvNeXtV2.from_size("pocket", num_classes=2))
    pretrain = PretrainTask(fcmae, seed=0)
    assert classify.depths == pretrain.depths == (1, 1, 2, 1)
    layers = {layer_of(name, classify.depths) for name, _ in classify.named_parameters()}
    assert layers == {1, 2, 3, 4, 5, 6}
    layers = {layer_of(name, pretrain.depths) for name, _ in pretrain.named_parameters()}
    assert layers == {1, 2, 3, 4, 5, 6}
    assert layer_of("model.decoder.0.dwconv.weight", pretrain.depths) == 6


def test_the_schedule_is_a_ramp_and_half_a_cosine() -> None:
    schedule = WarmupCosine(peak=2.4e-3, total_steps=110, warmup_steps=10, floor=1e-6)
    assert [schedule.at(step) for step in (0, 1, 5, 9)] == pytest.approx(
        [0, 2.4e-4, 1.2e-3, 2.16e-3]
    )
    assert schedule.at(10) == 2.4e-3
    assert schedule.at(60) == pytest.approx((2.4e-3 + 1e-6) / 2)
    assert schedule.at(110) == pytest.approx(1e-6)
    for step in range(10, 110):
        share = (step - 10) / 100
        expected = 1e-6 + (2.4e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * share))
        assert schedule.at(step) == pytest.approx(expected, rel=1e-12)


def test_the_schedule_equals_torchs_cosine() -> None:
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-3)
    schedule = WarmupCosine(peak=0.1, total_steps=50, floor=1e-3)
    for step in range(50):
        assert schedule.at(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        reference.step()


def test_the_schedule_stays_at_its_floor_and_survives_a_warm_up_to_the_end() -> None:
    assert WarmupCosine(peak=1.0, total_steps=10, floor=0.1).at(25) == pytest.approx(0.1)
    ramp = WarmupCosine(peak=1.0, total_steps=10, warmup_steps=10)
    assert [ramp.at(step) for step in (5, 9, 10)] == pytest.approx([0.5, 0.9, 1.0])


def test_a_warm_up_longer_than_training_is_refused() -> None:
    with pytest.raises(ValueError, match="warm-up of 11 steps is longer than the 10 of training"):
        WarmupCosine(peak=1.0, total_steps=10, warmup_steps=11)


def test_the_rate_is_per_256_images() -> None:
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)  # The paper's pretraining.
    assert scaled_lr(6.25e-4, 1024) == pytest.approx(2.5e-3)  # The released command for Base.
