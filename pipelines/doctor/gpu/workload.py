"""The workload of the parts: pretraining on random pixels, without a loader."""

import torch
from torch import Tensor

from convnextv2.fcmae import FCMAE
from convnextv2.tasks import TaskOutput
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.pretrain import PretrainTask


class Pretraining(PretrainTask):
    """The pretraining task on bare pixels (B, H, W, 3)."""

    def __init__(self, model: FCMAE) -> None:
        super().__init__(model, seed=0)

    def forward(self, pixels: Tensor) -> TaskOutput:  # type: ignore[override]
        return super().forward(_batch_of(pixels))

    def fixed_inputs(self, pixels: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().fixed_inputs(_batch_of(pixels))


def _batch_of(pixels: Tensor) -> Batch:
    numbers = torch.arange(len(pixels))
    return Batch(pixels, numbers, numbers, 0)


def random_pixels(batch: int, size: int, device: torch.device, seed: int = 0) -> Tensor:
    """Random pixels (batch, size, size, 3) uint8 on `device`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
