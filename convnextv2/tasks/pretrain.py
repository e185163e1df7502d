"""Pretraining: reconstruct what each sample's own mask hides."""

from torch import nn

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import sample_masks
from convnextv2.tasks import IMAGENET, Normalization, Normalize, TaskOutput
from convnextv2.tasks.batch import Batch


class PretrainTask(nn.Module):
    """FCMAE on batches; masks depend on (seed, epoch, sample index) only."""

    def __init__(self, model: FCMAE, *, seed: int, normalization: Normalization = IMAGENET) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.depths = model.encoder.depths
        self.normalize = Normalize(normalization)

    def forward(self, batch: Batch) -> TaskOutput:
        masks = sample_masks(
            seed=self.seed,
            epoch=batch.epoch,
            indices=batch.indices,
            num_patches=self.model.grid[0] * self.model.grid[1],
            mask_ratio=self.model.mask_ratio,
        )
        dtype = self.model.pred.weight.dtype
        images = self.normalize(batch.images, dtype)
        out = self.model(images, mask=masks, prediction="masked")
        return TaskOutput(out.loss, {})
