"""The encoder's two kinds of convolution on spconv's SparseConvTensors, by spconv's index maps.

spconv finds the pairs of sites (`get_indice_pairs`) and multiplies in the 2x2 convolution for the
dtypes that it supports. It has no grouped convolution, and its backward asks for a CUDA stream even
on CPUs. So the depthwise convolution and both backward passes are written here, on its maps, with
the same code for CPUs and GPUs. It has not been run on a GPU yet.

Legend: N input sites, M output sites, C input and O output channels, k kernel size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from spconv.core import ConvAlgo
from spconv.pytorch import SparseConvTensor, ops
from torch import Tensor
from torch.autograd.function import once_differentiable

from convnextv2.kernels.plain import gather_sites

SPCONV_MULTIPLIES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float16),
}
"""The dtypes of spconv's own product; others, such as bf16, are multiplied by PyTorch."""


class WindowMap(NamedTuple):
    """Index map of a convolution whose stride is its kernel size, where every window is whole."""

    pairs: Tensor
    """(2, k*k, N) int32, as spconv takes it: rows in, rows out."""
    counts: Tensor
    """(k*k) int32: how many pairs there are for each offset of the kernel."""
    windows: Tensor
    """(M, k*k): the row at each offset in a window."""
    sites: SparseConvTensor
    """The output's sites, without features; those of an image are consecutive rows."""


def bare_tensor(indices: Tensor, shape: list[int], batch: int) -> SparseConvTensor:
    """Sites without features: `indices` (N, 3) int32 are image, row, column on a (H, W) `shape`."""
    return SparseConvTensor(indices.new_empty(len(indices), 0), indices, shape, batch)


def strided_conv(x: SparseConvTensor, weight: Tensor, bias: Tensor) -> SparseConvTensor:
    """Convolve by (O, C, k, k) at stride k."""
    found, rows = window_map(x, weight.shape[-1]), x.features
    if _spconv_multiplies(rows, weight):
        out = _WindowConv.apply(rows, weight, found) + bias
    else:
        windows = gather_sites(rows, found.windows).flatten(1)
        out = F.linear(windows, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return found.sites.replace_feature(out)


def submanifold_depthwise(x: SparseConvTensor, weight: Tensor, bias: Tensor) -> SparseConvTensor:
    """Convolve by (C, 1, k, k), every channel alone, at the sites of `x` and nowhere else."""
    out = _Depthwise.apply(x.features, weight, bias, neighbours(x, weight.shape[-1]))
    return x.replace_feature(out)


def window_map(x: SparseConvTensor, k: int) -> WindowMap:
    """The map of a k x k convolution of stride k, kept with the tensor as spconv keeps its own."""
    name = f"windows {k}"
    if name not in x.indice_dict:
        indices, pairs, counts = _index_map(x, k, stride=k, padding=0, submanifold=False)
        # spconv numbers the output by order of discovery (CPU) or by position (GPU).
        order = indices[:, 0].argsort(stable=True)
        new_row = torch.empty_like(order)
        new_row[order] = torch.arange(len(order), device=order.device)
        pairs[1] = torch.where(pairs[1] < 0, pairs[1], new_row[pairs[1].long()].int())
        shape = [side // k for side in x.spatial_shape]
        x.indice_dict[name] = WindowMap(
            pairs,
            counts,
            _by_output(pairs, len(order), missing=len(x.indices)).t().contiguous(),
            bare_tensor(indices[order], shape, x.batch_size),
        )
    found: WindowMap = x.indice_dict[name]
    return found


def neighbours(x: SparseConvTensor, k: int) -> Tensor:
    """(k*k, N): the row that each site reads at each offset of a k x k kernel; N means none."""
    name = f"neighbours {k}"
    if name not in x.indice_dict:
        _, pairs, _ = _index_map(x, k, stride=1, padding=k // 2, submanifold=True)
        n = len(x.indices)
        table = _by_output(pairs, n, missing=n)
        # A submanifold map needs no pairs for the centre: every site reads itself.
        table[k * k // 2] = torch.arange(n, device=table.device)
        x.indice_dict[name] = table
    found: Tensor = x.indice_dict[name]
    return found


def _index_map(
    x: SparseConvTensor, k: int, *, stride: int, padding: int, submanifold: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (M, 3) of the output, pairs (2, k*k, N) filled up with -1, counts (k*k)."""
    maps: tuple[Tensor, Tensor, Tensor] = ops.get_indice_pairs(
        x.indices,
        x.batch_size,
        x.spatial_shape,
        ConvAlgo.Native,
        ksize=[k, k],
        stride=[stride, stride],
        padding=[padding, padding],
        dilation=[1, 1],
        out_padding=[0, 0],
        subm=submanifold,
    )
    return maps


def _by_output(pairs: Tensor, outputs: int, missing: int) -> Tensor:
    """Pairs as a table (k*k, outputs) of the rows that go in, `missing` where there is none.

    int64: PyTorch's index_select on CPUs is ten times slower on int32.
    """
    into, out = pairs.long()
    table = torch.full((len(out), outputs + 1), missing, device=pairs.device)
    # The -1 after the last pair of an offset addresses the spare column.
    table[torch.arange(len(out), device=pairs.device)[:, None], out] = into
    return table[:, :-1].contiguous()


def _spconv_multiplies(x: Tensor, weight: Tensor) -> bool:
    device = x.device.type
    return (
        x.dtype == weight.dtype
        and x.dtype in SPCONV_MULTIPLIES.get(device, ())
        and not torch.is_autocast_enabled(device)
    )


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Keep spconv 2.3.8 to one thread on CPUs: its threads overwrite each other's rows.

    With two of them every fifth product was wrong in a few rows (Atto at 224 px, fp32).
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


class _WindowConv(torch.autograd.Function):
    """spconv's convolution forward; backward as the matrix product that it is on whole windows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, found: WindowMap) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.windows = found.windows
        filters = weight.permute(0, 2, 3, 1).contiguous()
        with _one_thread(x.device):
            out: Tensor = ops.indice_conv(
                x.contiguous(), filters, found.pairs, found.counts, len(found.windows)
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        filters, windows = weight.permute(0, 2, 3, 1), ctx.windows
        by_filters = grad.t() @ x[windows].flatten(1)
        by_windows = grad @ filters.flatten(1)
        # No site is in two windows: a copy will do.
        by_x = torch.zeros_like(x).index_copy_(
            0, windows.flatten(), by_windows.view(-1, x.shape[1])
        )
        return by_x, by_filters.view_as(filters).permute(0, 3, 1, 2), None


class _Depthwise(torch.autograd.Function):
    """out[i] = bias + sum over kernel offsets p of weight[p] * x[table[p, i]], in fp32 at least.

    One offset at a time, so that no temporary is larger than the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.table = table
        rows = _with_a_row_of_zeros(x)
        out = bias.to(rows.dtype).repeat(len(x), 1)
        for read, by_channel in zip(table, _by_offset(weight, rows.dtype), strict=True):
            out.addcmul_(rows.index_select(0, read), by_channel)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias = ctx.saved_tensors
        rows = _with_a_row_of_zeros(grad)
        wide = x.to(rows.dtype)
        by_x, by_weight = torch.zeros_like(wide), rows.new_empty(len(ctx.table), len(weight))
        # If i reads j at an offset, j reads i at the opposite one, so the flipped table says which
        # sites read each site.
        for offset, read_by in enumerate(ctx.table.flip(0)):
            readers = rows.index_select(0, read_by)
            by_x.addcmul_(readers, _by_offset(weight, rows.dtype)[offset])
            by_weight[offset] = readers.mul_(wide).sum(0)
        by_bias = rows.sum(0).to(bias.dtype)
        return by_x.to(x.dtype), by_weight.t().reshape_as(weight).to(weight.dtype), by_bias, None


def _with_a_row_of_zeros(x: Tensor) -> Tensor:
    """(N + 1, C), in fp32 at least: row N stands for the sites that are not there."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.cat([x.to(wide), x.new_zeros(1, x.shape[1], dtype=wide)])


def _by_offset(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, 1, k, k) as (k*k, C)."""
    return weight.flatten(1).t().to(dtype).contiguous()
