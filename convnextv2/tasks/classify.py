"""Classification: fine-tuning and its evaluation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnextv2.data.load import Batch
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks import Normalize, TaskOutput


class ClassifyTask(nn.Module):
    """Cross entropy with label smoothing; of mixed images, that of both labels by their shares."""

    def __init__(self, model: ConvNeXtV2, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.depths = model.depths
        self.normalize = Normalize()

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, classes) in fp32."""
        stem = self.model.downsample_layers[0][0]  # type: ignore[index]
        scores: Tensor = self.model(self.normalize(batch.images, stem.weight.dtype))
        return scores.float()

    def forward(self, batch: Batch) -> TaskOutput:
        logits = self.logits(batch)
        correct = (logits.argmax(dim=1) == batch.labels).float().mean()
        return TaskOutput(self._loss(logits, batch), {"accuracy": correct.detach()})

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        if batch.coefficients is None or batch.partner_labels is None:
            return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        own, partner = (
            F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
            for labels in (batch.labels, batch.partner_labels)
        )
        return (batch.coefficients * own + (1 - batch.coefficients) * partner).mean()


@dataclass
class Confusion:
    """Counts (true, predicted) with the top-5 hits; adding the counts of workers merges them."""

    counts: Tensor
    top5_hits: int = 0

    @classmethod
    def empty(cls, num_classes: int) -> "Confusion":
        return cls(torch.zeros(num_classes, num_classes, dtype=torch.int64))

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count (B, classes) scores against (B,) labels."""
        classes = len(self.counts)
        flat = labels.cpu() * classes + logits.argmax(dim=1).cpu()
        self.counts += torch.bincount(flat, minlength=classes**2).view(classes, classes)
        top = logits.topk(min(5, classes), dim=1).indices
        self.top5_hits += int((top == labels[:, None]).any(dim=1).sum())

    def merge(self, other: "Confusion") -> None:
        self.counts += other.counts
        self.top5_hits += other.top5_hits

    @property
    def top1(self) -> float:
        return float(self.counts.diagonal().sum() / self.counts.sum())

    @property
    def top5(self) -> float:
        return self.top5_hits / int(self.counts.sum())

    @property
    def per_class(self) -> list[float]:
        """Recall of each class; NaN where the set holds none of it."""
        return (self.counts.diagonal() / self.counts.sum(dim=1)).tolist()
