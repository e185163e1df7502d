"""Layers for the decay of the learning rate, name by name, against the rules spelled out again."""

import pytest
import torch

from convnextv2.encoder import ConvNeXtV2
from convnextv2.recipe.layer_decay import Grouping, head_layer, layer_of, layer_scale
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.sizes import SIZES

Table = dict[str, int]
GROUPED = [name for name, size in SIZES.items() if size.depths == (3, 3, 27, 3)]

# The original's table for 3, 3, 27, 3, "group"; a name belongs to the entry it begins with.
GROUP: Table = {
    "downsample_layers.0.": 0,
    "stages.0.": 1,
    "downsample_layers.1.": 2,
    "stages.1.": 2,
    "downsample_layers.2.": 3,
    **dict.fromkeys(("stages.2.0.", "stages.2.1.", "stages.2.2."), 3),
    **dict.fromkeys(("stages.2.3.", "stages.2.4.", "stages.2.5."), 4),
    **dict.fromkeys(("stages.2.6.", "stages.2.7.", "stages.2.8."), 5),
    **dict.fromkeys(("stages.2.9.", "stages.2.10.", "stages.2.11."), 6),
    **dict.fromkeys(("stages.2.12.", "stages.2.13.", "stages.2.14."), 7),
    **dict.fromkeys(("stages.2.15.", "stages.2.16.", "stages.2.17."), 8),
    **dict.fromkeys(("stages.2.18.", "stages.2.19.", "stages.2.20."), 9),
    **dict.fromkeys(("stages.2.21.", "stages.2.22.", "stages.2.23."), 10),
    **dict.fromkeys(("stages.2.24.", "stages.2.25.", "stages.2.26."), 11),
    "downsample_layers.3.": 12,
    "stages.3.": 12,
    "norm.": 13,
    "head.": 13,
}


def single(depths: tuple[int, ...]) -> Table:
    """Walk through the network from the image on, a new number for every block."""
    table, number = {}, 0
    for stage, depth in enumerate(depths):
        for block in range(depth):
            number += 1
            table[f"stages.{stage}.{block}."] = number
            if block == 0:
                table[f"downsample_layers.{stage}."] = number
    return {**table, "norm.": number + 1, "head.": number + 1}


def look_up(table: Table, name: str) -> int:
    (layer,) = [layer for part, layer in table.items() if name.startswith(part)]
    return layer


CASES = [("single", size) for size in SIZES] + [("group", size) for size in GROUPED]


@pytest.mark.parametrize(("grouping", "size"), CASES)
def test_every_parameter_has_the_layer_and_scale_of_the_rules(
    grouping: Grouping, size: str
) -> None:
    with torch.device("meta"):
        model = ConvNeXtV2.from_size(size, num_classes=10)
    table = GROUP if grouping == "group" else single(SIZES[size].depths)
    last = table["head."]
    rule = GroupRule(weight_decay=0.05, layer_decay=0.8, grouping=grouping)
    groups = parameter_groups(model, rule, model.depths)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = look_up(table, name)
        assert layer_of(name, model.depths, grouping) == expected, name
        assert layer_of(f"module.model.{name}", model.depths, grouping) == expected, name
        assert scales[id(parameter)] == pytest.approx(0.8 ** (last - expected)), name
    # Every layer has something that is decayed and something that is not; no group is there twice.
    assert len(groups) == 2 * len(set(table.values()))


@pytest.mark.parametrize(
    ("size", "name", "layer"),
    [
        ("atto", "downsample_layers.0.0.weight", 1),
        ("atto", "stages.2.5.grn.gamma", 10),
        ("atto", "downsample_layers.3.1.bias", 11),
        ("nano", "stages.3.1.norm.bias", 14),
        ("tiny", "stages.2.8.pwconv2.weight", 15),
        ("base", "stages.2.26.dwconv.weight", 33),
        ("huge", "stages.3.2.pwconv1.weight", 36),
        ("huge", "head.weight", 37),
    ],
)
def test_layers_counted_by_hand(size: str, name: str, layer: int) -> None:
    assert layer_of(name, SIZES[size].depths) == layer


def test_the_papers_base_keeps_a_thousandth_of_the_rate_at_its_stem() -> None:
    depths = SIZES["base"].depths
    assert layer_scale("downsample_layers.0.1.weight", depths, 0.6, "group") == pytest.approx(
        0.0013060694016
    )
    assert layer_scale("head.bias", depths, 0.6, "group") == 1.0


def test_what_is_behind_the_encoder_learns_at_the_full_rate() -> None:
    for name in ("mask_token", "decoder.0.dwconv.weight", "proj.weight", "pred.bias"):
        assert layer_of(name, SIZES["atto"].depths) == 13
        assert layer_of(name, SIZES["base"].depths, "group") == 13


def test_group_is_refused_for_other_depths() -> None:
    for size in ("atto", "nano", "tiny"):
        with pytest.raises(ValueError, match=r"defined for depths \(3, 3, 27, 3\), these are \("):
            head_layer(SIZES[size].depths, "group")
        for name in ("head.weight", "stages.0.0.norm.weight"):
            with pytest.raises(ValueError, match="single works for all"):
                layer_scale(name, SIZES[size].depths, 0.9, "group")
