"""Part `kernel-speed`: times of single operations, compared to the bytes they must move."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from convnextv2 import kernels
from convnextv2.kernels import plain
from convnextv2.sizes import size_of
from pipelines.doctor.gpu.parts import Row, Setting
from pipelines.doctor.gpu.speed.calibration import BANDWIDTH
from pipelines.doctor.gpu.timing import seconds_of

GRID, VISIBLE = (7, 7), 19
SIDES = (8, 4, 2, 1)
"""Sites on a side of a patch, by stage."""

Operation = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]


def kernel_speed(setting: Setting) -> Iterator[Row]:
    """Every operation at the shapes of a size's stages, in bf16."""
    device = torch.device(setting.device)
    batch = 2 if setting.quick else 256
    sizes = ("pocket",) if setting.quick else ("base", "atto")
    stages = 1 if setting.quick else len(SIDES)
    for size in sizes:
        for stage, (side, channels) in enumerate(
            zip(SIDES[:stages], size_of(size).dims[:stages], strict=True)
        ):
            patches = torch.stack([torch.randperm(49)[:VISIBLE] for _ in range(batch)]).to(device)
            visible = (batch, VISIBLE, side, side, channels)
            wide = (*visible[:-1], 4 * channels)
            # A quarter of the images has about as many sites as FCMAE sees.
            dense = (max(1, batch // 4), 7 * side, 7 * side, channels)
            among = partial(kernels.patch_depthwise, patches=patches, grid=GRID)
            canvas = partial(plain.patch_depthwise, patches=patches, grid=GRID)
            groups = partial(kernels.gelu_grn, groups=batch)
            norm = partial(kernels.layer_norm, eps=1e-6)
            taps = (channels, 1, 7, 7)
            where = f"{size} {stage + 1}"
            for name, operation, shape, weight, least in (
                ("depthwise patches", among, visible, taps, (4, 8)),
                ("depthwise canvas", canvas, visible, taps, (4, 6)),
                ("depthwise dense", kernels.depthwise, dense, taps, (4, 8)),
                ("GELU + GRN", groups, wide, (4 * channels,), (6, 12)),
                ("LayerNorm", norm, visible, (channels,), (4, 6)),
            ):
                yield timed(f"{name} {where}", operation, shape, weight, least, setting)


def timed(
    name: str,
    operation: Operation,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    least: tuple[int, int],
    setting: Setting,
) -> Row:
    """Time forward and backward of `operation`, which must move `least` bytes per element."""
    device = torch.device(setting.device)
    leaves = [
        torch.randn(size, device=device).to(torch.bfloat16).requires_grad_()
        for size in (shape, weight, (weight[0],))
    ]
    out = operation(*leaves)
    outputs = out if isinstance(out, tuple) else (out,)
    towards = [torch.randn_like(output) for output in outputs]
    acts = {
        "forward": lambda: operation(*leaves),
        "backward": lambda: torch.autograd.grad(outputs, leaves, towards, retain_graph=True),
    }
    bandwidth = 1e12 * setting.rates.get(BANDWIDTH, float("nan"))
    figures: dict[str, float | str] = {}
    for (which, act), size in zip(acts.items(), least, strict=True):
        seconds = seconds_of(act, device, calls=1 if setting.quick else 10)
        figures[f"{which} ms"] = 1e3 * seconds
        figures[f"{which} of copy"] = size * leaves[0].numel() / bandwidth / seconds
    return Row(name, figures)
