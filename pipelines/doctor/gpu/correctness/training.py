"""Part `training`: 200 steps of a small FCMAE in fp32 and bf16 (fp32 masters), without engine."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import sample_masks
from pipelines.doctor.gpu.parts import Row, Setting

SIDE, PATCH, BATCH = 32, 8, 8
WINDOW = 20
"""Steps to average losses over, because those of single steps are noisy."""
LEARNS, BAND = 0.75, 0.05
"""The last mean must be below LEARNS times the first, and bf16's within BAND of fp32's."""


def training(setting: Setting) -> Iterator[Row]:
    """Check that the loss falls, bf16 follows fp32, and a second run gives the same bits."""
    device = torch.device(setting.device)
    steps = 40 if setting.quick else 200
    # The twenty steps of a dry run are too few for the loss to fall that far.
    learns = 1.0 if setting.quick else LEARNS
    exact = curve(torch.float32, steps, device)
    yield judged_fall("fp32", exact, learns)
    rounded = curve(torch.bfloat16, steps, device)
    yield judged_fall("bf16", rounded, learns)
    band = float(((means(rounded) - means(exact)) / means(exact)).abs().max())
    problem = "" if band < BAND else f"bf16 leaves a band of {BAND:.0%} around fp32"
    yield Row("bf16 against fp32", {"largest difference": band}, problem)
    again = curve(torch.bfloat16, WINDOW, device)
    same = torch.equal(again, rounded[:WINDOW])
    problem = "" if same else "a second run gave other losses: nothing resumes bit for bit"
    yield Row(f"{WINDOW} steps again", {"bitwise": str(same)}, problem)


def means(losses: Tensor) -> Tensor:
    return losses.unflatten(0, (-1, WINDOW)).mean(1)


def judged_fall(name: str, losses: Tensor, fraction: float) -> Row:
    first, last = (float(means(losses)[place]) for place in (0, -1))
    problem = (
        "" if last < fraction * first else f"the loss is not below {fraction:g} of its first mean"
    )
    return Row(f"{len(losses)} steps {name}", {"first": first, "last": last}, problem)


def curve(dtype: torch.dtype, steps: int, device: torch.device) -> Tensor:
    """Losses (steps,) of a model that computes in `dtype` and is trained with fp32 weights."""
    torch.manual_seed(0)
    masters = small_model().to(device)
    model = small_model().to(device, dtype)
    model.load_state_dict(masters.state_dict())
    optimizer = torch.optim.AdamW(masters.parameters(), lr=2e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(masters.parameters(), model.parameters(), strict=True))
    losses = []
    for step in range(steps):
        coarse = torch.randn(BATCH, 3, 4, 4, generator=generator)
        images = F.interpolate(coarse, size=SIDE, mode="bicubic").to(device, dtype)
        mask = sample_masks(
            seed=0, epoch=step, indices=range(BATCH), num_patches=(SIDE // PATCH) ** 2,
            mask_ratio=0.6,
        )  # fmt: skip
        model.zero_grad()
        loss = model(images, mask=mask, prediction="masked").loss
        loss.backward()
        for master, computing in pairs:
            assert computing.grad is not None
            master.grad = computing.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, computing in pairs:
                computing.copy_(master)
        losses.append(loss.detach().float())
    return torch.stack(losses).cpu()


def small_model() -> FCMAE:
    encoder = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=0, stem_stride=1)
    return FCMAE(encoder, image_size=SIDE, patch_size=PATCH, decoder_dim=32)
