"""FCMAE written a second time, from the paper and not from our code: NCHW, no tricks.

As in the JAX snippet of the authors' TRAINING.md: everything is computed on the full grid, features
are multiplied by the visibility before and after each depthwise convolution and for GRN's
statistics. Only the parameters are shared with the model under test, by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.fcmae import FCMAE


@dataclass(frozen=True)
class PlainOutput:
    """features: (B, C4, h, w); picture: predicted pixels (B, C, H, W); loss: scalar."""

    features: Tensor
    picture: Tensor
    loss: Tensor


def plain_fcmae(model: FCMAE, images: Tensor, mask: Tensor) -> PlainOutput:
    p = dict(model.named_parameters())
    grid, patch, depths = model.grid, model.patch_size, model.encoder.depths
    visible = 1 - mask.to(images.dtype).reshape(len(images), 1, *grid)
    pooled = model.grn_scope == "batch"

    x = images
    for stage, depth in enumerate(depths):
        name = f"encoder.downsample_layers.{stage}"
        if stage == 0:
            weight = p[f"{name}.0.weight"]
            x = x * grown(visible, x)
            x = F.conv2d(x, weight, p[f"{name}.0.bias"], stride=weight.shape[-1])
            x = norm(x, p, f"{name}.1")
        else:
            x = norm(x, p, f"{name}.0")
            x = F.conv2d(x, p[f"{name}.1.weight"], p[f"{name}.1.bias"], stride=2)
        for block in range(depth):
            x = plain_block(x, p, f"encoder.stages.{stage}.{block}", grown(visible, x), pooled)
    features = x * grown(visible, x)

    x = F.conv2d(features, p["proj.weight"], p["proj.bias"])
    seen = grown(visible, x)
    x = x * seen + p["mask_token"] * (1 - seen)
    for block in range(len(list(model.decoder.children()))):
        x = plain_block(x, p, f"decoder.{block}", torch.ones_like(seen), pooled=False)
    x = F.conv2d(x, p["pred.weight"], p["pred.bias"])
    picture = spread(x, model.encoder.stride)
    return PlainOutput(features, picture, plain_loss(model, images, picture, mask, grid, patch))


def plain_block(
    x: Tensor, p: Mapping[str, Tensor], name: str, seen: Tensor, pooled: bool
) -> Tensor:
    h = F.conv2d(
        x * seen, p[f"{name}.dwconv.weight"], p[f"{name}.dwconv.bias"], padding=3, groups=x.shape[1]
    )
    h = norm(h * seen, p, f"{name}.norm")
    h = F.conv2d(h, p[f"{name}.pwconv1.weight"][:, :, None, None], p[f"{name}.pwconv1.bias"])
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    energy = (h * seen).square().sum(dim=(0, 2, 3) if pooled else (2, 3), keepdim=True).sqrt()
    response = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
    gamma, beta = (p[f"{name}.grn.{which}"].reshape(1, -1, 1, 1) for which in ("gamma", "beta"))
    h = gamma * (h * response) + beta + h
    h = F.conv2d(h, p[f"{name}.pwconv2.weight"][:, :, None, None], p[f"{name}.pwconv2.bias"])
    return x + h


def norm(x: Tensor, p: Mapping[str, Tensor], name: str) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    scaled = (x - mean) / (variance + 1e-6).sqrt()
    return scaled * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def grown(visible: Tensor, x: Tensor) -> Tensor:
    """The visibility of patches as one value per place of `x`."""
    return F.interpolate(visible, size=x.shape[-2:], mode="nearest")


def spread(x: Tensor, stride: int) -> Tensor:
    """Channel (row * stride + column) * C + c of every place as pixels."""
    by_colour = x.unflatten(1, (stride**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(by_colour, stride)


def plain_loss(
    model: FCMAE, images: Tensor, picture: Tensor, mask: Tensor, grid: tuple[int, int], patch: int
) -> Tensor:
    errors = []
    for sample in range(len(images)):
        for number in range(grid[0] * grid[1]):
            if mask[sample, number]:
                top, left = number // grid[1] * patch, number % grid[1] * patch
                box = (sample, slice(None), slice(top, top + patch), slice(left, left + patch))
                target = images[box]
                if model.norm_pix_loss:
                    deviation = (target - target.mean()).square().sum() / (target.numel() - 1)
                    target = (target - target.mean()) / (deviation + 1e-6).sqrt()
                errors.append((picture[box] - target).square().mean())
    return torch.stack(errors).mean()
