"""Part `backends`: loss and gradients of every backend against the reference, masked-dense."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import sample_masks
from convnextv2.fcmae.sparse import Backend
from pipelines.doctor.gpu.correctness.kernels import relative
from pipelines.doctor.gpu.parts import Row, Setting

BARS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2}
GRADIENT_BARS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""In bf16 the backends round at different places, in the forward and backward of every layer."""
BATCH = 16
QUICK_BATCH = 4


def backends(setting: Setting) -> Iterator[Row]:
    """One forward and backward of every backend that can be imported, in three precisions."""
    # By default cuDNN computes fp32 convolutions in TF32, which would spoil the reference.
    torch.backends.cudnn.allow_tf32 = False
    others: list[Backend] = ["gather"]
    if find_spec("spconv") is not None:
        others.append("spconv")
    for dtype in BARS:
        oracle = evaluate("masked-dense", dtype, setting)
        for backend in others:
            if backend == "spconv" and dtype == torch.float64 and setting.on_gpu:
                continue  # This backend has no fp64 on GPUs.
            yield difference(backend, dtype, evaluate(backend, dtype, setting), oracle)


def evaluate(backend: Backend, dtype: torch.dtype, setting: Setting) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients in one flat vector."""
    device = torch.device(setting.device)
    size, pixels, batch = ("pocket", 128, QUICK_BATCH) if setting.quick else ("atto", 224, BATCH)
    torch.manual_seed(0)
    model = FCMAE.from_size(size, image_size=pixels, backend=backend)
    with torch.no_grad():
        for parameter in model.parameters():
            # GRN is initialised as the identity, which would hide errors in it.
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(device, dtype)
    images = torch.randn(batch, 3, pixels, pixels).to(device, dtype)
    patches = model.grid[0] * model.grid[1]
    mask = sample_masks(seed=0, epoch=0, indices=range(batch), num_patches=patches, mask_ratio=0.6)
    loss = model(images, mask=mask, prediction="masked").loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), torch.cat([each.flatten().double() for each in gradients])


def difference(
    backend: str, dtype: torch.dtype, got: tuple[Tensor, Tensor], oracle: tuple[Tensor, Tensor]
) -> Row:
    loss, gradients = (relative(a, b) for a, b in zip(got, oracle, strict=True))
    problem = ""
    if not (loss < BARS[dtype] and gradients < GRADIENT_BARS[dtype]):
        problem = f"above {BARS[dtype]:g} (loss) or {GRADIENT_BARS[dtype]:g} (gradients)"
    name = str(dtype).removeprefix("torch.")
    return Row(f"{backend} {name}", {"loss": loss, "gradients": gradients}, problem)
