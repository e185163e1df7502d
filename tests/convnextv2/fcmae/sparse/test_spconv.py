"""Backend `spconv`: its convolutions on shuffled sites, what it uses of spconv, what it refuses."""

import sys
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from spconv.pytorch import SparseConvTensor, ops
from torch import Tensor
from torch.autograd import gradcheck

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.sparse import backend_of
from convnextv2.fcmae.sparse.spconv_ops import bare_tensor, strided_conv, submanifold_depthwise
from convnextv2.fcmae.sparse.spconv_sites import check_build
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, small_fcmae

BATCH, ROWS, COLUMNS = 3, 3, 4


def shuffled_sites(data: st.DataObject, k: int) -> Tensor:
    """(N, 3) int32: whole k x k windows in some of three images, in no order at all."""
    windows = st.tuples(
        st.integers(0, BATCH - 1), st.integers(0, ROWS - 1), st.integers(0, COLUMNS - 1)
    )
    chosen = data.draw(st.sets(windows, min_size=1), "windows")
    sites = [
        (image, row * k + down, column * k + right)
        for image, row, column in sorted(chosen)
        for down in range(k)
        for right in range(k)
    ]
    return torch.tensor(data.draw(st.permutations(sites), "sites"), dtype=torch.int32)


def on_canvas(rows: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    """Rows laid in their places of (B, C, H, W), zeros elsewhere."""
    canvas = rows.new_zeros(BATCH, height, width, rows.shape[1])
    return canvas.index_put(tuple(indices.long().t()), rows).permute(0, 3, 1, 2)


def at_sites(canvas: Tensor, indices: Tensor) -> Tensor:
    image, row, column = indices.long().t()
    return canvas[image, :, row, column]


def parameters(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), bias.requires_grad_()


def rows_for(indices: Tensor, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = len(indices), channels
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same_with_gradients(got: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    close(got, expected)
    towards = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    gradients = torch.autograd.grad(got, leaves, towards)
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves, towards), strict=True):
        close(one, other)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data(), k=st.sampled_from([3, 5, 7]))
def test_depthwise_is_a_convolution_at_the_sites(data: st.DataObject, k: int) -> None:
    indices = shuffled_sites(data, 2)
    shape = [ROWS * 2, COLUMNS * 2]
    rows, (weight, bias) = rows_for(indices, 3), parameters(3, 1, k, k)
    sites = bare_tensor(indices, shape, BATCH).replace_feature(rows)
    got = submanifold_depthwise(sites, weight, bias)
    dense = F.conv2d(on_canvas(rows, indices, *shape), weight, bias, padding=k // 2, groups=3)
    assert_same_with_gradients(got.features, at_sites(dense, indices), [rows, weight, bias])


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data(), k=st.sampled_from([2, 3]))
def test_strided_convolution_whatever_order_the_sites_come_in(data: st.DataObject, k: int) -> None:
    indices = shuffled_sites(data, k)
    shape = [ROWS * k, COLUMNS * k]
    rows, (weight, bias) = rows_for(indices, 3), parameters(5, 3, k, k)
    sites = bare_tensor(indices, shape, BATCH).replace_feature(rows)
    got = strided_conv(sites, weight, bias)
    dense = F.conv2d(on_canvas(rows, indices, *shape), weight, bias, stride=k)
    assert got.spatial_shape == [ROWS, COLUMNS]
    images = got.indices[:, 0]
    assert torch.equal(images, images.sort().values)
    coarse = {(image, row // k, column // k) for image, row, column in indices.tolist()}
    assert sorted(map(tuple, got.indices.tolist())) == sorted(coarse)
    assert_same_with_gradients(got.features, at_sites(dense, got.indices), [rows, weight, bias])


def test_gradients_are_those_of_finite_differences() -> None:
    indices = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.int32)
    rows, (weight, bias) = rows_for(indices, 2), parameters(2, 1, 3, 3)
    filters, offsets = parameters(3, 2, 2, 2)
    sites = bare_tensor(indices, [2, 2], 1)

    def depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return submanifold_depthwise(sites.replace_feature(x), weight, bias).features

    def strided(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return strided_conv(sites.replace_feature(x), weight, bias).features

    assert gradcheck(depthwise, (rows, weight, bias))
    assert gradcheck(strided, (rows, filters, offsets))


@pytest.mark.parametrize(
    ("dtype", "products"), [(torch.float64, 3), (torch.float32, 3), (torch.bfloat16, 0)]
)
def test_maps_and_products_are_those_of_spconv(dtype: torch.dtype, products: int) -> None:
    # Four stages, one index map each however many blocks, and three convolutions between them.
    model = small_fcmae(backend="spconv").to(dtype)
    images, mask = noise(model, 2).to(dtype), masks(model, {0, 3}, {1, 5})
    with (
        patch.object(ops, "get_indice_pairs", wraps=ops.get_indice_pairs) as maps,
        patch.object(ops, "indice_conv", wraps=ops.indice_conv) as conv,
    ):
        model.encode(images, mask).sum().backward()
    assert [call.kwargs["subm"] for call in maps.call_args_list] == [True, False] * 3 + [True]
    assert conv.call_count == products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_lower_precision_stays_near(dtype: torch.dtype) -> None:
    images, mask = noise(small_fcmae(), 2), masks(small_fcmae(), {0, 3}, {1, 5})
    exact = small_fcmae(backend="spconv").encode(images, mask)
    got = small_fcmae(backend="spconv").to(dtype).encode(images.to(dtype), mask)
    assert got.dtype == dtype
    # Ten layers, each rounding its output: errors add up to a few units of the last place.
    error = (got.double() - exact).abs().max() / exact.abs().max()
    assert 0 < float(error) < 10 * torch.finfo(dtype).eps


def test_threads_do_not_spoil_the_product() -> None:
    # With two threads, spconv 2.3.8 alone got a few rows wrong in every second of these products.
    torch.set_num_threads(2)
    side = torch.arange(40, dtype=torch.int32)
    indices = torch.cartesian_prod(torch.arange(8, dtype=torch.int32), side, side)
    rows, (weight, bias) = rows_for(indices, 40).detach(), parameters(80, 40, 2, 2)
    sites = bare_tensor(indices, [40, 40], 8).replace_feature(rows)
    canvas = rows.view(8, 40, 40, 40).permute(0, 3, 1, 2)
    expected = F.conv2d(canvas, weight, bias, stride=2).permute(0, 2, 3, 1).flatten(0, 2)
    for _ in range(20):
        close(strided_conv(sites, weight, bias).features, expected)
    assert torch.get_num_threads() == 2


def test_stages_hold_sparse_tensors_of_their_sites() -> None:
    model = small_fcmae((3, 4), strides_per_patch=2)
    sites = backend_of("spconv")(masks(model, {0, 6}).bool(), model.grid, 16, "image")
    features = list(model.encoder.stage_features(noise(model, 1), sites))
    tensors = list(sites.stages.values())  # type: ignore[attr-defined]
    assert all(isinstance(tensor, SparseConvTensor) for tensor in tensors)
    assert [len(t.indices) for t in tensors] == [x.shape[1] for x in features] == [512, 128, 32, 8]
    assert [t.spatial_shape for t in tensors] == [[48, 64], [24, 32], [12, 16], [6, 8]]


@pytest.mark.parametrize("stages", [(), (0, 1, 2, 3)])
def test_skips_and_checkpointed_stages_equal_those_of_gather(stages: tuple[int, ...]) -> None:
    results = []
    for backend in ("gather", "spconv"):
        model = small_fcmae(decoder="unet", decoder_dim=16, backend=backend, strides_per_patch=2)
        model.encoder.checkpoint_stages = frozenset(stages)
        images = noise(model, 2).requires_grad_()
        output = model(images, masks(model, {0, 3}, {1, 5}))
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([output.prediction, images.grad, *gradients])
    assert len(results[0]) == len(results[1]) > 50
    for got, expected in zip(*results, strict=True):
        assert isinstance(got, Tensor)
        assert isinstance(expected, Tensor)
        close(got, expected)


def test_a_missing_library_is_named_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("spconv_sites", "spconv_ops"):
        monkeypatch.delitem(sys.modules, f"convnextv2.fcmae.sparse.{module}", raising=False)
    for module in ("spconv", "spconv.core", "spconv.pytorch", "spconv.cppconstants"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"needs the library spconv.*'convnextv2\[spconv\]'.*126"):
        FCMAE.from_size("pocket", image_size=64, backend="spconv")


def test_a_cpu_build_is_refused_on_a_gpu() -> None:
    with pytest.raises(ValueError, match="pip install spconv-cu126"):
        check_build(torch.device("cuda"), cpu_only=True)
    check_build(torch.device("cuda"), cpu_only=False)
    check_build(torch.device("cpu"), cpu_only=True)


def test_a_batch_without_visible_patches_is_refused() -> None:
    model = small_fcmae(backend="spconv")
    with pytest.raises(ValueError, match="no patch is visible"):
        model.encode(noise(model, 2), masks(model, set(), set()))
