"""The least arithmetic of a step: multiply-adds of one image, counted from the geometry.

The encoder counts visible sites only, the prediction masked patches only. All counts are for the
forward pass; the backward pass needs twice as many.
"""

from convnextv2.fcmae import FCMAE
from convnextv2.sizes import size_of, visible_count

KERNEL = 49
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12}
"""Dense bf16 FLOP/s from the data sheets, of the SXM version where there is one."""


def peak_of(device: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU, by its name in PyTorch; None if it is not known."""
    return next((rate for name, rate in PEAKS.items() if name in device), None)


def encoder_macs(size: str, image_size: int, visible: float = 1.0, stem_stride: int = 4) -> float:
    """Multiply-adds of the encoder on one image; `visible` is the share of visible patches."""
    chosen, stride, previous, total = size_of(size), stem_stride, 3 * stem_stride**2, 0.0
    for depth, dim in zip(chosen.depths, chosen.dims, strict=True):
        sites = (image_size / stride) ** 2 * visible
        block = KERNEL * dim + 2 * dim * 4 * dim
        total += sites * (previous * dim + depth * block)
        stride, previous = 2 * stride, 4 * dim
    return total


def fcmae_macs(size: str, model: FCMAE) -> float:
    """Multiply-adds of a forward pass on one image, with the default decoder."""
    patches = model.grid[0] * model.grid[1]
    visible = visible_count(patches, model.mask_ratio)
    dim = model.proj.out_channels
    pixels = model.encoder.stride**2 * model.encoder.in_channels
    block = KERNEL * dim + 2 * dim * 4 * dim
    depth = sum(1 for _ in model.decoder.children())
    decoder = visible * model.encoder.dims[-1] * dim + patches * depth * block
    prediction = (patches - visible) * dim * pixels
    stem_stride = model.encoder.stride // 8
    encoder = encoder_macs(size, model.image_size[0], visible / patches, stem_stride)
    return encoder + decoder + prediction
