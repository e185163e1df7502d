"""The compiled CPU kernels against plain PyTorch: values, every gradient, what they keep."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2 import kernels
from convnextv2.kernels import build, native, plain, recomputed
from convnextv2.layers import Block
from tests.convnextv2.kernels.triton_cases import with_shortcut

Operation = Callable[..., Tensor]
# fp32: rounding of sums as long as these.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
# Whole vectors, half ones, none at all, and a bit of everything.
CHANNELS = (1, 4, 8, 16, 40, 43)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def values_and_gradients(act: Operation, *inputs: Tensor) -> list[Tensor]:
    out = act(*inputs)
    weights = random(*out.shape, dtype=out.dtype, seed=9).detach()
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def assert_same(act: Operation, expected: Operation, *inputs: Tensor) -> None:
    tolerance = TOLERANCE[inputs[0].dtype]
    # The plain path in fp64: it must not be its own rounding that is measured.
    exact = values_and_gradients(expected, *(i.detach().double().requires_grad_() for i in inputs))
    for got, wanted in zip(values_and_gradients(act, *inputs), exact, strict=True):
        error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
        assert float(error) < tolerance


def test_the_kernels_are_compiled_here() -> None:
    assert build.library() is not None
    assert native.usable(torch.zeros(1))


@both_dtypes
@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm(dtype: torch.dtype, channels: int) -> None:
    # Shifted: a variance by the difference of two large sums would show.
    x = (random(3, 5, channels, dtype=dtype) * 2 + 20).detach().requires_grad_()
    weight, bias = (random(channels, dtype=dtype, seed=s) for s in (1, 2))
    if channels > 1:
        assert_same(
            lambda x, w, b: native.layer_norm(x, w, b, 1e-6),
            lambda x, w, b: plain.layer_norm(x, w, b, 1e-6),
            x,
            weight,
            bias,
        )


@both_dtypes
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("groups", [1, 3])
def test_gelu_grn(dtype: torch.dtype, channels: int, groups: int) -> None:
    x = random(3, 2, 5, channels, dtype=dtype) * 3
    x = x.detach().requires_grad_()
    gamma, beta = (random(1, 1, 1, channels, dtype=dtype, seed=s) for s in (1, 2))
    assert_same(
        lambda x, w, b: recomputed.gelu_grn(native, x, w, b, groups),
        lambda x, w, b: plain.gelu_grn(x, w, b, groups),
        x,
        gamma,
        beta,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gelu_is_right_far_from_zero(dtype: torch.dtype) -> None:
    x = torch.linspace(-40, 40, 4001, dtype=dtype)[None, :, None].requires_grad_()
    zero = torch.zeros(1, dtype=dtype)
    out = recomputed.gelu_grn(native, x, zero, zero, 1)  # gamma = beta = 0: GELU alone
    (slope,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double().requires_grad_()
    wanted = F.gelu(exact)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), exact)
    scale = x.detach().double().abs().clamp(min=1)
    bound = 5e-7 if dtype == torch.float32 else 1e-15
    assert float(((out.detach() - wanted.detach()) / scale).abs().max()) < bound
    assert float((slope - wanted_slope).abs().max()) < 4 * bound


def test_a_group_without_any_response_has_finite_gradients() -> None:
    x = torch.zeros(2, 4, 16, requires_grad=True)
    gamma, beta = (torch.ones(16, requires_grad=True) for _ in range(2))
    recomputed.gelu_grn(native, x, gamma, beta, 2).sum().backward()
    for tensor in (x, gamma, beta):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@both_dtypes
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (16, 24), (1, 5), (17, 3), (19, 34)])
@pytest.mark.parametrize("channels", [5, 16, 24])
def test_dense_depthwise(dtype: torch.dtype, size: tuple[int, int], channels: int) -> None:
    x = random(2, *size, channels, dtype=dtype)
    weight = random(channels, 1, 7, 7, dtype=dtype, seed=1)
    assert_same(
        with_shortcut(native.depthwise),
        with_shortcut(lambda x, w, b: (plain.depthwise(x, w, b), x)),
        *(x, weight, random(channels, dtype=dtype, seed=2)),
    )


@both_dtypes
@pytest.mark.parametrize("side", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("channels", [5, 24])
@pytest.mark.parametrize("batch", [1, 2, 18])
def test_patch_depthwise(dtype: torch.dtype, side: int, channels: int, batch: int) -> None:
    grid, visible = (3, 4), 5
    generator = torch.Generator().manual_seed(batch)
    chosen = torch.rand(batch, 12, generator=generator).argsort(1)[:, :visible].sort(1).values
    x = random(batch, visible, side, side, channels, dtype=dtype)
    weight = random(channels, 1, 7, 7, dtype=dtype, seed=1)
    bias = random(channels, dtype=dtype, seed=2)
    assert_same(
        with_shortcut(lambda x, w, b: native.patch_depthwise(x, w, b, chosen, grid)),
        with_shortcut(lambda x, w, b: (plain.patch_depthwise(x, w, b, chosen, grid), x)),
        *(x, weight, bias),
    )


def test_the_gradient_of_a_shortcut_is_added_to_the_bit() -> None:
    """As if autograd added the two in a pass of its own; and either may come alone."""
    inputs = random(2, 7, 7, 24, dtype=torch.float32), random(24, 1, 7, 7, dtype=torch.float32)
    x, weight, bias = *inputs, random(24, dtype=torch.float32)
    out, shortcut = native.depthwise(x, weight, bias)
    towards, along = torch.randn_like(out), torch.randn_like(out)
    got, convolved, passed = (
        torch.autograd.grad(outputs, x, gradients, retain_graph=True)[0]
        for outputs, gradients in (
            ((out, shortcut), (towards, along)),
            ((out,), (towards,)),
            ((shortcut,), (along,)),
        )
    )
    assert torch.equal(shortcut, x)
    assert torch.equal(got, convolved + along)
    assert torch.equal(passed, along)
    doubles = [leaf.detach()[..., :2].double().requires_grad_() for leaf in (x, bias)]
    small = random(2, 1, 7, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(native.depthwise, (doubles[0][:1], small, doubles[1]))


def test_what_is_not_contiguous_is_read_right() -> None:
    x = random(2, 6, 8, 8, dtype=torch.float64)
    weight, bias = random(6, 1, 7, 7, dtype=torch.float64), random(6, dtype=torch.float64)
    assert_same(
        with_shortcut(lambda t, w, b: native.depthwise(t.permute(0, 2, 3, 1), w, b)),
        with_shortcut(lambda t, w, b: (plain.depthwise(v := t.permute(0, 2, 3, 1), w, b), v)),
        *(x, weight, bias),
    )


def test_a_block_computes_its_widest_tensor_again_and_gets_the_same_gradients() -> None:
    torch.manual_seed(0)
    block = Block(8).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = random(2, 6, 6, 8, dtype=torch.float64)

    def run() -> tuple[list[Tensor], list[tuple[int, ...]]]:
        kept: list[tuple[int, ...]] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = block(x)
        return list(torch.autograd.grad(out.square().sum(), [x, *block.parameters()])), kept

    got, kept = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "usable", lambda x, *parameters: False)
        expected, kept_by_plain = run()
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    wide = lambda shapes: sum(shape[-1] == 32 and len(shape) > 2 for shape in shapes)  # noqa: E731
    assert wide(kept) < wide(kept_by_plain)


def test_numbers_do_not_depend_on_the_number_of_threads() -> None:
    x = random(5, 4, 4, 4, 40, dtype=torch.float32)
    patches = torch.arange(4).repeat(5, 1)
    inputs = x, random(40, 1, 7, 7, dtype=torch.float32), random(40, dtype=torch.float32)

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        convolved = values_and_gradients(
            with_shortcut(lambda x, w, b: native.patch_depthwise(x, w, b, patches, (2, 3))), *inputs
        )
        normed = values_and_gradients(
            lambda x, w, b: native.layer_norm(x, w, b, 1e-6), x, *inputs[2:] * 2
        )
        responded = values_and_gradients(
            lambda x, w, b: recomputed.gelu_grn(native, x, w, b, 1), x, *inputs[2:] * 2
        )
        return convolved + normed + responded

    for one, three in zip(run(1), run(3), strict=True):
        assert torch.equal(one, three)


def test_nan_is_not_swallowed() -> None:
    x = torch.zeros(1, 4, 4, 16)
    x[0, 1, 1, 3] = float("nan")
    one, zero = torch.ones(16), torch.zeros(16)
    assert native.layer_norm(x, one, zero, 1e-6).isnan().any()
    assert recomputed.gelu_grn(native, x, one, zero, 1).isnan().any()
    assert native.depthwise(x, torch.ones(16, 1, 7, 7), zero)[0].isnan().any()


def test_other_dtypes_autocast_and_export_go_the_plain_way() -> None:
    x = torch.zeros(1, 2, 16)
    assert not native.usable(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not native.usable(x)
    out = kernels.gelu_grn(x.bfloat16(), torch.zeros(16), torch.zeros(16), 1)
    assert out.dtype == torch.bfloat16


def test_parameters_of_another_kind_are_never_read_as_if_they_were_not() -> None:
    x, one = torch.randn(2, 4, 4, 16), torch.ones(16)
    assert native.usable(x, one)
    for other in (one.bfloat16(), one.double(), torch.ones(32)[::2]):
        assert not native.usable(x, one, other)
    weight = torch.arange(32.0)[::2]
    expected = F.layer_norm(x, (16,), weight.clone(), one, 1e-6)
    torch.testing.assert_close(kernels.layer_norm(x, weight, one, 1e-6), expected)


def in_a_process_of_its_own(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import torch; from convnextv2.layers import Block; torch.manual_seed(0); b = Block(8);"
        "x = torch.randn(2, 4, 4, 8); y = b(x); y.sum().backward();"
        "from convnextv2.kernels import build;"
        "print(build.library() is None, round(float(y.detach().sum()), 3))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
def test_without_a_compiler_pytorch_does_it_and_says_so_once(tmp_path: Path) -> None:
    compiled = in_a_process_of_its_own(tmp_path)
    without = in_a_process_of_its_own(tmp_path / "other", CXX="no-such-compiler")
    assert compiled.stdout.split()[0] == "False"
    assert without.stdout.split() == ["True", compiled.stdout.split()[1]]
    assert without.stderr.count("install g++ or set CXX") == 1
    assert compiled.stderr == ""


@pytest.mark.slow
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no space left >&2\nexit 1\n')
    broken.chmod(0o755)
    done = in_a_process_of_its_own(tmp_path, CXX=str(broken))
    assert "no compiled CPU kernels, training will be slower: no space left" in done.stderr
    assert list((tmp_path / "convnextv2").iterdir()) == []


@pytest.mark.slow
def test_a_build_is_made_once_and_can_be_turned_off(tmp_path: Path) -> None:
    in_a_process_of_its_own(tmp_path)
    (library,) = (tmp_path / "convnextv2").iterdir()
    made = library.stat().st_mtime_ns
    in_a_process_of_its_own(tmp_path)
    assert library.stat().st_mtime_ns == made
    assert in_a_process_of_its_own(tmp_path, CONVNEXTV2_KERNELS="plain").stdout.startswith("True")
