"""Average precision, for images that may have several classes."""

import torch
from torch import Tensor


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision (C,) fp64 of each class; NaN where no image has it.

    The area under the stepwise precision-recall curve, with images of equal scores at one step, as
    in scikit-learn's `average_precision_score`. Its mean over the classes is mAP.

    Args:
        scores: (N, C), larger is more confident.
        targets: (N, C), 1 where an image has the class, else 0.
    """
    columns = zip(scores.unbind(dim=1), targets.unbind(dim=1), strict=True)
    return torch.stack([_of_class(of_class, wanted) for of_class, wanted in columns])


def mean_of(precisions: Tensor) -> float:
    """mAP: the mean over the classes that an image has; NaN where there is none."""
    return float(precisions.nanmean())


def _of_class(scores: Tensor, wanted: Tensor) -> Tensor:
    ranked, order = scores.sort(descending=True)
    found = wanted[order].double().cumsum(dim=0)
    seen = torch.arange(1, len(scores) + 1, device=scores.device)
    # A threshold accepts all images of equal score or none, so only the last of them is a step.
    last = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    found, seen = found[last], seen[last]
    return (found.diff(prepend=found.new_zeros(1)) * found / seen).sum() / found[-1]
