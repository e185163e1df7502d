"""Counting right answers: how many images have their label among the k best scores."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_top_k(scores: Tensor, labels: Tensor, k: int, *, above: float | None = None) -> Tensor:
    """Whether (B,) the label, or one of the labels, is among the `k` best of scores (B, C).

    Args:
        scores: (B, C), larger is better; with fewer than `k` classes all are among the best.
        labels: (B,) numbers of classes, or (B, C) of 0 and 1 where there may be several.
        k: At least 1.
        above: Classes that do not score more than this are never among the best.
    """
    if k == 1:  # Several times faster than topk.
        best = scores.argmax(dim=1, keepdim=True)
    else:
        best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    right = best == labels[:, None] if labels.ndim == 1 else labels.gather(1, best) > 0
    if above is not None:
        right &= scores.gather(1, best) > above
    return right.any(dim=1)


def num_correct(
    scores: Tensor, labels: Tensor, ks: Sequence[int], *, above: float | None = None
) -> Tensor:
    """How many images are `in_top_k`, int64 (len(ks),), for each k."""
    return torch.stack([in_top_k(scores, labels, k, above=above).sum() for k in ks])
