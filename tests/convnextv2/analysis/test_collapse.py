"""Feature collapse: the paper's formula pair by pair, and which features of which block it sees."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.analysis.collapse import (
    CollapseMeter,
    activation_maps,
    block_named,
    block_names,
    channel_distance,
)
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks import Normalize
from tests.convnextv2.analysis.collapsed import collapse_block

BLOCKS = ["stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "stages.3.0"]


def encoder(seed: int = 0, num_classes: int = 0) -> ConvNeXtV2:
    """Every parameter random, so that GRN does something."""
    torch.manual_seed(seed)
    model = ConvNeXtV2.from_size("pocket", num_classes=num_classes, stem_stride=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def photos(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 16, 24, 3), dtype=torch.uint8, generator=generator)


def by_pairs(features: Tensor) -> float:
    """The formula of section 4 with its whole C x C table, for (H, W, C)."""
    maps = features.double().numpy().reshape(-1, features.shape[-1]).T
    lengths = np.sqrt((maps**2).sum(axis=1))
    cosines = (maps @ maps.T) / np.outer(lengths, lengths)
    return float(((1 - cosines) / 2).sum() / len(maps) ** 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0])
def test_the_distance_is_the_papers(mean: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features = (torch.randn(3, 5, 4, 12) * torch.rand(12) * 1e3 + mean).to(dtype)
    distance, dead = channel_distance(features)
    expected = [by_pairs(image) for image in features]
    precise = 1e-12 if dtype is torch.float64 else 1e-6
    np.testing.assert_allclose(distance, expected, rtol=0, atol=precise)
    assert dead.tolist() == [0, 0, 0]


def maps_of(*channels: list[float]) -> Tensor:
    """Channels of 1 x 4 sites as one image."""
    return torch.tensor(channels).T[None, None]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        # Collapsed: the strength of a channel does not matter, its direction does.
        ([[1, 2, 3, 4], [10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4]], 0.0),
        # Unrelated: 0.5 for different channels, 0 for each with itself.
        ([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 4]], 0.5 * 12 / 16),
        # Opposite: 1 for different channels.
        ([[1, 2, 3, 4], [-1, -2, -3, -4]], 1.0 * 2 / 4),
    ],
)
def test_known_distances(channels: list[list[float]], expected: float) -> None:
    distance, _ = channel_distance(maps_of(*channels))
    assert distance.tolist() == pytest.approx([expected], abs=1e-7)
    assert distance.min() >= 0


def test_dead_channels_are_counted_and_make_nothing_look_diverse() -> None:
    zero = [0.0, 0, 0, 0]
    alike = [[1.0, 2, 3, 4], [2.0, 4, 6, 8]]
    distance, dead = channel_distance(maps_of(*alike, zero, zero))
    assert distance.item() == pytest.approx(0, abs=1e-7)
    assert dead.tolist() == [0.5]
    # As good as zero: squares that fp32 cannot hold.
    distance, dead = channel_distance(maps_of(*alike, [1e-25, -1e-25, 0, 1e-25]))
    assert distance.item() == pytest.approx(0, abs=1e-7)
    assert dead.item() == pytest.approx(1 / 3)


def test_an_image_without_any_signal_has_no_distance() -> None:
    features = torch.zeros(2, 3, 3, 4)
    features[1] = torch.randn(3, 3, 4)
    distance, dead = channel_distance(features)
    assert math.isnan(distance[0])
    assert distance[1] == pytest.approx(by_pairs(features[1]), abs=1e-6)
    assert dead.tolist() == [1, 0]


def behind_grn(model: ConvNeXtV2, x: Tensor) -> list[Tensor]:
    """The 4C features (B, h, w, 4C) of each block, layer by layer from the weights."""
    weights, seen = model.state_dict(), []
    for stage, depth in enumerate(model.depths):
        first, second = (f"downsample_layers.{stage}.{layer}" for layer in (0, 1))
        convolution, norm = (first, second) if stage == 0 else (second, first)
        if stage:
            x = normed(x, weights, norm)
        weight = weights[f"{convolution}.weight"]
        x = F.conv2d(x, weight, weights[f"{convolution}.bias"], stride=weight.shape[-1])
        if not stage:
            x = normed(x, weights, norm)
        for block in range(depth):
            own = {
                name.removeprefix(f"stages.{stage}.{block}."): value
                for name, value in weights.items()
                if name.startswith(f"stages.{stage}.{block}.")
            }
            h = F.conv2d(x, own["dwconv.weight"], own["dwconv.bias"], padding=3, groups=x.shape[1])
            h = normed(h, own, "norm").permute(0, 2, 3, 1)
            h = F.gelu(h @ own["pwconv1.weight"].T + own["pwconv1.bias"])
            strength = h.square().sum(dim=(1, 2), keepdim=True).sqrt()
            relative = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
            h = own["grn.gamma"] * (h * relative) + own["grn.beta"] + h
            seen.append(h)
            x = x + (h @ own["pwconv2.weight"].T + own["pwconv2.bias"]).permute(0, 3, 1, 2)
    return seen


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    gain, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return scaled * gain + shift


@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_block_is_measured_behind_grn(num_classes: int) -> None:
    model, images = encoder(num_classes=num_classes).double(), photos(5)
    meter = CollapseMeter(model)
    meter.show(images[:3])
    meter.show(images[3:])
    measured = meter.result()

    expected = behind_grn(model, Normalize()(images, torch.float64))
    assert [block.block for block in measured] == BLOCKS
    assert [block.channels for block in measured] == [64, 128, 256, 256, 512]
    assert [block.position for block in measured] == [0, 0.25, 0.5, 0.75, 1]
    assert [block.dead for block in measured] == [0] * 5
    np.testing.assert_allclose(
        [block.distance for block in measured if block.distance is not None],
        # The mean of the images' distances, though the batches were not of one size.
        [np.mean([by_pairs(image) for image in features]) for features in expected],
        rtol=0,
        atol=1e-5,  # The image's pixels were normalised in fp32.
    )


def test_a_model_whose_channels_are_all_alike_has_collapsed() -> None:
    model = encoder()
    collapse_block(model, "stages.2.0")
    meter = CollapseMeter(model)
    meter.show(photos(2))
    distances = {block.block: block.distance for block in meter.result()}
    assert distances.pop("stages.2.0") == pytest.approx(0, abs=1e-6)
    assert min(value or 0 for value in distances.values()) > 0.1


def test_a_block_without_signal_has_no_distance_and_all_channels_dead() -> None:
    model = encoder()
    with torch.no_grad():
        for name in ("pwconv1.weight", "pwconv1.bias", "grn.beta"):
            model.get_parameter(f"stages.1.0.{name}").zero_()
    meter = CollapseMeter(model)
    meter.show(photos(2))
    silent = meter.result()[1]
    assert (silent.block, silent.distance, silent.dead) == ("stages.1.0", None, 1)


def test_maps_are_the_features_of_channels_at_equal_distances() -> None:
    model, images = encoder().double(), photos(2)
    features = behind_grn(model, Normalize()(images, torch.float64))
    maps = activation_maps(model, images, "stages.2.1", channels=8)
    expected = features[3][..., ::32].permute(0, 3, 1, 2)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)
    assert activation_maps(model, images, "stages.0.0").shape == (2, 64, 16, 24)


def test_watching_ends_with_the_measurement() -> None:
    model = encoder()
    meter = CollapseMeter(model)
    meter.show(photos(1))
    model(torch.randn(1, 3, 16, 16))
    once = meter.result()
    assert not any(module._forward_hooks for module in model.modules())
    meter.show(photos(1))
    assert meter.result() == once


def test_blocks_go_by_their_names_in_the_file() -> None:
    model = encoder()
    assert block_names(model) == BLOCKS
    assert block_named(model, None) == "stages.2.1"
    assert block_named(model, "stages.3.0") == "stages.3.0"
    with pytest.raises(ValueError, match=r"no block 'stages\.3\.1'; choose one of stages\.0\.0, "):
        block_named(model, "stages.3.1")
