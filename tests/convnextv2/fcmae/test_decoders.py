"""Decoders: Table 1, where mask tokens lie, what each decoder sees, and its parts by reference."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.decoders import (
    Canvas,
    Decoder,
    TransformerBlock,
    UNetDecoder,
    Upsample,
    sine_cosine_positions,
)
from convnextv2.fcmae.sparse import Backend, backend_of
from convnextv2.sizes import DECODER_UNITS, TABLE_1
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, small_fcmae

# As narrow as each can be, but for the UNets: their finest scale has an eighth of the width.
WIDTHS = {"convnext": 12, "unet": 16, "unet-noskip": 16, "transformer": 32}
every_decoder = pytest.mark.parametrize("decoder", WIDTHS)
unets = pytest.mark.parametrize("decoder", ["unet", "unet-noskip"])


def with_decoder(decoder: str, grid: tuple[int, int] = (3, 2), **options: Any) -> FCMAE:
    return small_fcmae(grid, decoder=decoder, decoder_dim=WIDTHS[decoder], **options)


def caught(module: nn.Module) -> list[tuple[Any, Any]]:
    """Arguments and results of the module's forward, as they come."""
    calls: list[tuple[Any, Any]] = []
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    return calls


def test_every_decoder_is_covered_here() -> None:
    assert list(WIDTHS) == list(DECODER_UNITS)


@every_decoder
@pytest.mark.parametrize(
    ("grid", "stem_stride", "strides_per_patch", "channels"),
    [((3, 2), 1, 1, 3), ((2, 4), 2, 1, 1), ((1, 2), 4, 1, 3), ((2, 2), 1, 3, 2)],
)
def test_every_parameter_is_trained_in_any_geometry(
    decoder: str,
    grid: tuple[int, int],
    stem_stride: int,
    strides_per_patch: int,
    channels: int,
) -> None:
    model = with_decoder(
        decoder,
        grid,
        stem_stride=stem_stride,
        strides_per_patch=strides_per_patch,
        channels=channels,
        decoder_depth=2,
    )
    output = model(noise(model, 2), generator=torch.Generator().manual_seed(0))
    output.loss.backward()
    patch = 8 * stem_stride * strides_per_patch
    assert output.prediction.shape == (2, grid[0] * grid[1], patch * patch * channels)
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@every_decoder
@pytest.mark.parametrize("strides_per_patch", [1, 2])
def test_backends_agree_and_what_is_masked_is_never_seen(
    decoder: str, strides_per_patch: int
) -> None:
    model = with_decoder(decoder, strides_per_patch=strides_per_patch)
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    pixels = mask.reshape(2, 1, *model.grid)
    hidden = F.interpolate(pixels, size=model.image_size, mode="nearest") == 1
    predictions = []
    backend: Backend
    for backend in ("gather", "spconv", "masked-dense"):
        model.sites = backend_of(backend)
        prediction = model(images, mask).prediction
        assert torch.equal(model(images.masked_fill(hidden, 9.0), mask).prediction, prediction)
        predictions.append(prediction)
    close(predictions[0], predictions[1])


@pytest.mark.parametrize("backend", ["gather", "spconv", "masked-dense"])
@pytest.mark.parametrize("strides_per_patch", [1, 2])
def test_features_lie_at_visible_sites_and_the_token_at_masked_ones(
    backend: Backend, strides_per_patch: int
) -> None:
    model = small_fcmae(strides_per_patch=strides_per_patch)
    mask = masks(model, {0, 3}, {1, 5})
    sites = backend_of(backend)(mask.bool(), model.grid, model.patch_size, "image")
    features = model.encoder.features(noise(model, 2), sites)
    token = torch.randn(10, dtype=torch.float64)
    filled = Canvas(sites, mask.bool().unflatten(1, model.grid)).fill(features, token)
    encoded = model.encode(noise(model, 2), mask)
    for sample in range(2):
        for row in range(3 * strides_per_patch):
            for column in range(2 * strides_per_patch):
                patch = row // strides_per_patch * 2 + column // strides_per_patch
                expected = token if mask[sample, patch] else encoded[sample, :, row, column]
                close(filled[sample, row, column], expected)


@every_decoder
def test_the_decoder_is_given_projected_features_and_mask_tokens(decoder: str) -> None:
    model = with_decoder(decoder)
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    calls = caught(model.decoder)
    model(images, mask)
    ((x, skips, _), decoded) = calls[0]
    weight, bias = model.proj.weight, model.proj.bias
    projected = F.conv2d(model.encode(images, mask), weight, bias).permute(0, 2, 3, 1)
    hidden = mask.reshape(2, *model.grid, 1) == 1
    close(x, torch.where(hidden, model.mask_token.flatten(), projected))
    assert len(skips) == (3 if decoder == "unet" else 0)
    assert decoded.shape[-1] == model.decoder.width == model.pred.in_channels


def test_every_scale_of_a_unet_has_its_own_token_at_masked_sites() -> None:
    model = with_decoder("unet", strides_per_patch=2)
    unet = model.decoder
    assert isinstance(unet, UNetDecoder)
    mask = masks(model, {0, 3}, {1, 5})
    calls = [caught(skip) for skip in unet.skips.children()]
    model(noise(model, 2), mask)
    tokens = [token for name, token in unet.named_parameters() if name.endswith("mask_token")]
    for scale, ((_, laid),) in enumerate(calls):
        side = 2 ** (scale + 2)  # Sites along a patch: 4, 8, 16.
        assert laid.shape == (2, 3 * side, 2 * side, 16 // 2 ** (scale + 1))
        is_token = (laid == tokens[scale].flatten()).all(dim=-1)
        expected = mask.reshape(2, 3, 2).repeat_interleave(side, 1).repeat_interleave(side, 2) == 1
        assert torch.equal(is_token, expected)


@unets
def test_a_unet_doubles_the_sites_and_halves_the_width_in_three_steps(decoder: str) -> None:
    model = with_decoder(decoder, (2, 3), decoder_depth=2)
    unet = model.decoder
    assert isinstance(unet, UNetDecoder)
    calls = [caught(scale) for scale in unet.scales.children()]
    model(noise(model, 1), masks(model, {0, 3}))
    shapes = [tuple(output.shape) for ((_, output),) in calls]
    assert shapes == [(1, 2, 3, 16), (1, 4, 6, 8), (1, 8, 12, 4), (1, 16, 24, 2)]
    assert [len(list(scale.children())) for scale in unet.scales.children()] == [2, 2, 2, 2]


@unets
def test_only_skips_show_a_unet_the_earlier_stages(decoder: str) -> None:
    model = with_decoder(decoder)
    mask = masks(model, {0, 3})
    *_, last = model.encoder.stages[3].children()
    last.register_forward_hook(lambda _, inputs, output: torch.ones_like(output))
    first, second = (model(noise(model, 1, seed), mask).prediction for seed in (1, 2))
    assert torch.equal(first, second) is (decoder == "unet-noskip")


def test_upsampling_is_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    layer = Upsample(6, 4).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    weight = layer.expand.weight.reshape(2, 2, 4, 6).permute(3, 2, 0, 1)
    bias = layer.expand.bias.reshape(2, 2, 4)
    upsampled = F.conv_transpose2d(layer.norm(x).permute(0, 3, 1, 2), weight, stride=2)
    close(layer(x), upsampled.permute(0, 2, 3, 1) + bias.repeat(3, 5, 1))


def test_positions_are_maes() -> None:
    table = sine_cosine_positions(3, 5, 16)
    assert table.shape == (3, 5, 16)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(
                table[row, column], torch.tensor(expected), rtol=0, atol=1e-6
            )


def test_a_transformer_block_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = TransformerBlock(64).double()
    theirs = nn.TransformerEncoderLayer(
        64, 2, 256, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    attention, mlp = theirs.self_attn, ours.mlp
    assert attention.in_proj_weight is not None
    pairs: list[tuple[Any, Any]] = [
        (attention.in_proj_weight, ours.qkv.weight),
        (attention.in_proj_bias, ours.qkv.bias),
    ]
    modules = [
        (attention.out_proj, ours.proj),
        (theirs.norm1, ours.norm1),
        (theirs.norm2, ours.norm2),
        (theirs.linear1, mlp[0]),
        (theirs.linear2, mlp[2]),
    ]
    pairs += [(getattr(t, n), getattr(o, n)) for t, o in modules for n in ("weight", "bias")]
    with torch.no_grad():
        for theirs_parameter, ours_parameter in pairs:
            ours_parameter.copy_(theirs_parameter.normal_())
    x = torch.randn(2, 6, 64, dtype=torch.float64)
    close(ours(x), theirs(x))


@every_decoder
def test_the_loss_starts_at_one_and_what_a_last_norm_adds(decoder: str) -> None:
    torch.manual_seed(0)
    model = FCMAE.from_size("pocket", image_size=128, **TABLE_1[decoder])
    # Behind the transformer's last LayerNorm are 512 values of variance 1; each comes into the
    # prediction with a weight of deviation 0.02.
    expected = 1 + 512 * 0.02**2 if decoder == "transformer" else 1
    with torch.inference_mode():
        assert float(model(torch.randn(4, 3, 128, 128)).loss) == pytest.approx(expected, abs=0.1)


@every_decoder
def test_tokens_are_drawn_with_a_deviation_of_002(decoder: str) -> None:
    torch.manual_seed(0)
    model = FCMAE.from_size("pocket", image_size=64, decoder=decoder, decoder_dim=2048)
    tokens = [p for name, p in model.named_parameters() if name.endswith("mask_token")]
    assert len(tokens) == (4 if decoder == "unet" else 1)
    assert all(0.015 < float(token.detach().std()) < 0.025 for token in tokens)


# The paper's Table 1: (b) decoder blocks and (c) decoder width, of the ConvNeXt decoder.
@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ({f"blocks-{depth}": depth for depth in (1, 2, 4, 8, 12)}, "decoder_depth"),
        ({f"dim-{dim}": dim for dim in (128, 256, 512, 768, 1024)}, "decoder_dim"),
    ],
)
def test_table_1_varies_one_thing_at_a_time(rows: dict[str, int], field: str) -> None:
    default = {"decoder": "convnext", "decoder_dim": 512, "decoder_depth": 1}
    for name, value in rows.items():
        assert TABLE_1[name] == {**default, field: value}


@pytest.mark.parametrize("row", TABLE_1)
def test_every_row_of_table_1_builds_what_it_says(row: str) -> None:
    with torch.device("meta"):
        model = FCMAE.from_size("base", **TABLE_1[row])
        decoded = model.decoder(torch.zeros(1, 7, 7, TABLE_1[row]["decoder_dim"]), *skips_of(model))
    assert decoded.shape == (1, *[56 if "unet" in row else 7] * 2, model.decoder.width)
    assert model.pred(decoded).numel() == 224 * 224 * 3
    if TABLE_1[row]["decoder"] == "convnext":
        assert len(list(model.decoder.children())) == TABLE_1[row]["decoder_depth"]


class _Everything:
    """Sites of which none is hidden, as far as a decoder looks."""

    def to_dense(self, x: Tensor) -> Tensor:
        return x


def skips_of(model: FCMAE) -> tuple[list[Tensor], Canvas]:
    assert isinstance(model.decoder, Decoder)
    sides = (56, 28, 14) if model.decoder.wants_skips else ()
    skips = [
        torch.zeros(1, s, s, d) for s, d in zip(sides, model.encoder.dims[:3], strict=bool(sides))
    ]
    sites: Any = _Everything()
    return skips, Canvas(sites, torch.zeros(1, 7, 7, dtype=torch.bool))


def test_the_default_decoder_has_the_published_names_and_shapes() -> None:
    # What a checkpoint of the official training script holds.
    with torch.device("meta"):
        model = FCMAE.from_size("atto")
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if not n.startswith("encoder")}
    assert shapes == {
        "mask_token": (1, 512, 1, 1),
        "proj.weight": (512, 320, 1, 1),
        "proj.bias": (512,),
        "decoder.0.dwconv.weight": (512, 1, 7, 7),
        "decoder.0.dwconv.bias": (512,),
        "decoder.0.norm.weight": (512,),
        "decoder.0.norm.bias": (512,),
        "decoder.0.pwconv1.weight": (2048, 512),
        "decoder.0.pwconv1.bias": (2048,),
        "decoder.0.grn.gamma": (1, 1, 1, 2048),
        "decoder.0.grn.beta": (1, 1, 1, 2048),
        "decoder.0.pwconv2.weight": (512, 2048),
        "decoder.0.pwconv2.bias": (512,),
        "pred.weight": (3072, 512, 1, 1),
        "pred.bias": (3072,),
    }
