"""Classification: fine-tuning, linear probing, and their evaluation."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks import IMAGENET, Normalization, Normalize, TaskOutput
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.topk import in_top_k, num_correct


class ClassifyTask(nn.Module):
    """Cross entropy with label smoothing; for mixed images, weighted between both labels.

    Where images may have several classes (labels (B, classes) of 0 and 1) the loss is binary cross
    entropy, averaged over classes; label smoothing s makes its targets s / 2 and 1 - s / 2.

    `trainable` is "all", or "head" for a linear probe: then encoder and final norm are frozen, in
    eval mode, and no gradient is computed for them.
    """

    def __init__(
        self,
        model: ConvNeXtV2,
        *,
        label_smoothing: float = 0.0,
        trainable: Literal["all", "head"] = "all",
        normalization: Normalization = IMAGENET,
    ) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.trainable = model, label_smoothing, trainable
        self.depths = model.depths
        self.normalize = Normalize(normalization)
        if trainable == "head":
            assert model.head is not None
            model.requires_grad_(False)
            model.head.requires_grad_(True)
            self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.trainable == "head":
            self.model.eval()
        return self

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, classes) in fp32."""
        stem = self.model.downsample_layers[0][0]  # type: ignore[index]
        scores: Tensor = self.model(self.normalize(batch.images, stem.weight.dtype))
        return scores.float()

    def forward(self, batch: Batch) -> TaskOutput:
        return self._output(batch)

    def _output(self, batch: Batch) -> TaskOutput:
        logits = self.logits(batch)
        correct = in_top_k(logits, batch.labels, 1).float().mean()
        loss = self._loss(logits, batch)
        return TaskOutput(loss, {"accuracy": correct.detach()}, logits.detach())

    def fixed_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `compute` takes: pixels, labels and, where images are mixed, their shares."""
        mixed = () if batch.coefficients is None else (batch.coefficients,)
        return batch.images, batch.labels, *mixed

    def compute(
        self, pixels: Tensor, labels: Tensor, coefficients: Tensor | None = None
    ) -> TaskOutput:
        """As `forward`, from what is on the device: for CUDA graphs."""
        # Neither numbers nor epoch are looked at.
        return self._output(Batch(pixels, labels, labels, 0, coefficients))

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        own = cross_entropies(logits, batch.labels, self.label_smoothing)
        if batch.coefficients is None or batch.partner_labels is None:
            return own.mean()
        partner = cross_entropies(logits, batch.partner_labels, self.label_smoothing)
        return (batch.coefficients * own + (1 - batch.coefficients) * partner).mean()


def cross_entropies(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each image (B,) from scores (B, C) and labels (B,), or (B, C) of 0 and 1."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    targets = labels * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


@dataclass
class ClassCounts:
    """Images counted by their class: all, those recognised, and, if asked for, which for which.

    The counts of several workers are merged by adding their tensors, all int64.

    Attributes:
        images: (C,) images of each class.
        correct: (C,) those of which the best score is their class.
        top5_correct: () those, of any class, with their class among the best five.
        confusion: (C, C) images by (true, predicted) class, or None: it is 3.8 GB for the 21,841
            classes of ImageNet-22K.
    """

    images: Tensor
    correct: Tensor
    top5_correct: Tensor
    confusion: Tensor | None

    @classmethod
    def empty(cls, num_classes: int, *, confusion: bool) -> "ClassCounts":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64)

        matrix = zeros(num_classes, num_classes) if confusion else None
        return cls(zeros(num_classes), zeros(num_classes), zeros(), matrix)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What is added up."""
        counts = (self.images, self.correct, self.top5_correct)
        return counts if self.confusion is None else (*counts, self.confusion)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count (B, C) scores against (B,) labels."""
        labels, predicted = labels.cpu(), logits.argmax(dim=1).cpu()
        ones = torch.ones_like(labels)
        self.images.index_add_(0, labels, ones)
        self.correct.index_add_(0, labels, (labels == predicted).long())
        self.top5_correct += num_correct(logits, labels.to(logits.device), (5,)).item()
        if self.confusion is not None:
            self.confusion.index_put_((labels, predicted), ones, accumulate=True)

    @property
    def per_class(self) -> list[float]:
        """Recall of each class; NaN for a class that no image has."""
        return (self.correct.double() / self.images).tolist()
