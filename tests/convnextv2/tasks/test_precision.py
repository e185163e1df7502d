"""bf16 against fp32, and activation checkpointing against none."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.sparse import Backend
from convnextv2.layers import GeluGRN, LayerNorm
from convnextv2.sizes import DECODER_UNITS, TABLE_1
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, small_fcmae

STEPS = 200
EPS = 2**-8  # bf16: 8 bits of significand; rounding is off by half of this at most.


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def textures(batch: int, generator: torch.Generator) -> Tensor:
    """Smooth random images (B, 3, 32, 32), whose patches follow from their neighbours."""
    coarse = torch.randn(batch, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(32, 32), mode="bicubic")


def toy() -> FCMAE:
    torch.manual_seed(0)
    encoder = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=0, stem_stride=1)
    return FCMAE(encoder, image_size=32, patch_size=8, decoder_dim=32)


def learning_curve(
    dtype: torch.dtype, context: Callable[[], AbstractContextManager[Any]]
) -> Tensor:
    """Losses of 200 steps of AdamW. A bf16 model has fp32 masters, as DeepSpeed keeps them."""
    masters = toy()
    model = toy().to(dtype)
    optimizer = torch.optim.AdamW(masters.parameters(), 2e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        images = textures(8, generator).to(dtype)
        with context():
            loss = model(images, generator=generator, prediction="masked").loss
        model.zero_grad()
        loss.backward()
        pairs = list(zip(masters.parameters(), model.parameters(), strict=True))
        for master, parameter in pairs:
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in pairs:
                parameter.copy_(master)
        losses.append(loss.detach())
    return torch.stack(losses)


def test_200_steps_in_bf16_stay_within_five_percent_of_fp32() -> None:
    """The same images and masks; the mean loss of every 20 steps is compared."""
    exact = learning_curve(torch.float32, nullcontext).unflatten(0, (-1, 20)).mean(dim=1)
    assert exact[-1] < 0.75 * exact[0]  # It did learn: otherwise any two curves agree.
    for dtype, context in ((torch.float32, autocast), (torch.bfloat16, nullcontext)):
        curve = learning_curve(dtype, context)
        assert curve.dtype == torch.float32
        means = curve.unflatten(0, (-1, 20)).mean(dim=1)
        torch.testing.assert_close(means, exact, rtol=0.05, atol=0)


@pytest.mark.parametrize("decoder", DECODER_UNITS)
@pytest.mark.parametrize("backend", ["gather", "spconv", "masked-dense"])
@pytest.mark.parametrize("how", ["autocast", "model"])
def test_bf16_gives_the_loss_of_fp32_and_finite_gradients(
    decoder: str, backend: Backend, how: str
) -> None:
    options: Any = {**TABLE_1[decoder], "decoder_dim": 64}
    torch.manual_seed(0)
    model = FCMAE.from_size("pocket", image_size=64, backend=backend, **options)
    images, mask = torch.randn(2, 3, 64, 64), torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]])
    expected = model(images, mask).loss.detach()
    if how == "model":
        model, images = model.bfloat16(), images.bfloat16()
    with autocast() if how == "autocast" else nullcontext():
        output = model(images, mask)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss.detach(), expected, rtol=4 * EPS, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("how", ["autocast", "model"])
def test_grn_and_layer_norm_lose_no_more_than_rounding(how: str) -> None:
    """Many sites far from zero: sums of their squares in bf16 would stop growing at 256 terms."""
    torch.manual_seed(0)
    x = (3 + torch.randn(2, 64, 64, 8)).bfloat16()
    grn, norm = GeluGRN(8), LayerNorm(8)
    with torch.no_grad():
        for parameter in (*grn.parameters(), *norm.parameters()):
            parameter.copy_(torch.randn_like(parameter).bfloat16())
    if how == "model":
        grn, norm = grn.bfloat16(), norm.bfloat16()
    with autocast() if how == "autocast" else nullcontext():
        after_grn, after_norm = grn(x), norm(x)

    exact = x.double()
    g = exact * (1 + torch.erf(exact / 2**0.5)) / 2
    energy = g.square().sum(dim=(1, 2), keepdim=True).sqrt()
    response = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
    expected = grn.gamma.double() * (g * response) + grn.beta.double() + g
    # One rounding each of g, of the factor 1 + gamma * response, and of the result.
    scale = (1 + grn.gamma.double() * response).abs() * g.abs() + grn.beta.double().abs()
    assert ((after_grn.double() - expected).abs() <= 2 * EPS * scale).all()

    centred = exact - exact.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    expected = centred / deviation * norm.weight.double() + norm.bias.double()
    scale = (expected - norm.bias.double()).abs() + norm.bias.double().abs()
    assert ((after_norm.double() - expected).abs() <= EPS * scale).all()


def counted(model: nn.Module) -> dict[int, int]:
    """How often a block of each stage began its forward."""
    begun = dict.fromkeys(range(4), 0)
    encoder = next(m for m in model.modules() if isinstance(m, ConvNeXtV2))

    def count(stage: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            begun[stage] += 1

        return hook

    for stage, blocks in enumerate(encoder.stages):
        for block in blocks.children():
            block.register_forward_pre_hook(count(stage))
    return begun


@pytest.mark.parametrize("backend", ["gather", "spconv", "masked-dense"])
@pytest.mark.parametrize("stages", [(), (0,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("context", [nullcontext, autocast])
def test_checkpointed_stages_are_computed_twice_with_the_same_gradients(
    backend: Backend,
    stages: tuple[int, ...],
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    def gradients(checkpointed: tuple[int, ...]) -> tuple[Iterator[Tensor], dict[int, int]]:
        model = small_fcmae(backend=backend)
        if context is autocast:
            model = model.float()
        model.encoder.checkpoint_stages = frozenset(checkpointed)
        begun = counted(model)
        images = noise(model, 2).to(model.pred.weight.dtype).requires_grad_()
        with context():
            loss = model(images, masks(model, {0, 3}, {1, 5})).loss
        return iter(torch.autograd.grad(loss, [images, *model.parameters()])), begun

    (expected, once), (got, begun) = gradients(()), gradients(stages)
    for one, other in zip(expected, got, strict=True):
        close(other.double(), one.double())
    assert once == {0: 1, 1: 1, 2: 2, 3: 1}
    assert begun == {stage: n * (2 if stage in stages else 1) for stage, n in once.items()}


def test_checkpointing_keeps_less_and_draws_the_same_dropped_paths() -> None:
    def step(stages: tuple[int, ...]) -> tuple[int, list[Tensor]]:
        torch.manual_seed(0)
        model = ConvNeXtV2.from_size(
            "pocket", num_classes=3, stem_stride=1, drop_path=0.5, checkpoint_stages=stages
        )
        kept = 0

        def keep(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 3)
        return kept, list(torch.autograd.grad(loss, list(model.parameters())))

    (all_kept, expected), (less_kept, got) = step(()), step((0, 1, 2, 3))
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    assert less_kept < all_kept / 2


def test_without_gradients_nothing_is_computed_twice() -> None:
    model = small_fcmae()
    model.encoder.checkpoint_stages = frozenset(range(4))
    begun = counted(model)
    with torch.no_grad():
        model(noise(model, 2))
    assert begun == {0: 1, 1: 1, 2: 2, 3: 1}


def test_stages_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoint_stages \(1, 4\) are not among 0, 1, 2, 3"):
        FCMAE.from_size("pocket", checkpoint_stages=(1, 4))
