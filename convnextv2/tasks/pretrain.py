"""Pretraining: reconstruct what each sample's own mask hides."""

from torch import Tensor, nn

from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import sample_masks, send
from convnextv2.fcmae.sparse.gather import visible_patches
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
        images = self._normalized(batch.images)
        out = self.model(images, mask=self._masks(batch), prediction="masked")
        return TaskOutput(out.loss, {})

    def fixed_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `compute` takes: pixels, and masks (B, L) with the numbers that they give."""
        masks = self._masks(batch)
        places = masks, masks.flatten().nonzero().flatten(), visible_patches(masks)
        return batch.images, *(send(each, batch.images.device) for each in places)

    def compute(self, pixels: Tensor, masks: Tensor, masked: Tensor, visible: Tensor) -> TaskOutput:
        """As `forward`, by the backend "gather", from what is on the device: for CUDA graphs."""
        images = self._normalized(pixels)
        return TaskOutput(self.model.loss_at(images, masks, masked, visible), {})

    def _masks(self, batch: Batch) -> Tensor:
        return sample_masks(
            seed=self.seed,
            epoch=batch.epoch,
            indices=batch.indices,
            num_patches=self.model.grid[0] * self.model.grid[1],
            mask_ratio=self.model.mask_ratio,
        )

    def _normalized(self, pixels: Tensor) -> Tensor:
        images: Tensor = self.normalize(pixels, self.model.pred.weight.dtype)
        return images
