"""What the parts train: pretraining on random pixels, without a loader."""

import torch
from torch import Tensor, nn

from convnextv2.fcmae import FCMAE
from convnextv2.masking import sample_masks
from convnextv2.tasks import Normalize, TaskOutput


class Pretraining(nn.Module):
    """`convnextv2.tasks.pretrain.PretrainTask` on bare pixels: that one needs FFCV's batches."""

    def __init__(self, model: FCMAE) -> None:
        super().__init__()
        self.model, self.depths, self.normalize = model, model.encoder.depths, Normalize()

    def forward(self, pixels: Tensor) -> TaskOutput:
        masks = sample_masks(
            seed=0,
            epoch=0,
            indices=range(len(pixels)),
            num_patches=self.model.grid[0] * self.model.grid[1],
            mask_ratio=self.model.mask_ratio,
        )
        images = self.normalize(pixels, self.model.pred.weight.dtype)
        return TaskOutput(self.model(images, mask=masks, prediction="masked").loss, {})


def random_pixels(batch: int, size: int, device: torch.device, seed: int = 0) -> Tensor:
    """(B, size, size, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
