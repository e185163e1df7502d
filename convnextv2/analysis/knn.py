"""Weighted k-nearest-neighbour classification of frozen features, on a bank cut into shards.

The protocol of InstDisc (arXiv 1805.01978, section 3.4), which DINO (2104.14294) made the usual
one: the k nearest training images by cosine similarity vote for their class with the weight
exp(similarity / T), where k = 20 and T = 0.07.

A neighbour is one integer: its similarity in steps of 2**-30 in the upper half, its number in the
lower. The k largest integers of several lists are the k nearest neighbours; of equally near images
the first goes first. So a bank may be spread over any number of workers in any way.

Legend: Q queries, N images of the bank (or of a shard of it), C channels, K classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2

BANK_ROWS = 8192
"""Images of the bank that queries are compared with at a time."""

_STEPS = 2.0**30
_NUMBERS = 2**32
NOBODY = torch.iinfo(torch.int64).min


def pooled(encoder: ConvNeXtV2, images: Tensor) -> Tensor:
    """Features (B, C) of length 1: the mean over the sites of the last map, in fp32 at least.

    Raises:
        ValueError: When the encoder's output is not finite.
    """
    means = encoder(images).mean(dim=(2, 3))
    means = means.to(torch.promote_types(means.dtype, torch.float32))
    if not means.isfinite().all():
        raise ValueError("the encoder's features are NaN or infinite; its training diverged")
    return F.normalize(means, dim=1)


def nearest(queries: Tensor, bank: Tensor, numbers: Tensor, k: int) -> Tensor:
    """The k nearest images of a bank (N, C) with the numbers `numbers` (N), for queries (Q, C).

    Returns:
        Neighbours (Q, k) int64, nearest first; NOBODY where the bank has fewer.
    """
    best = torch.full((len(queries), k), NOBODY, device=queries.device)
    for rows, names in zip(bank.split(BANK_ROWS), numbers.split(BANK_ROWS), strict=True):
        steps = (queries @ rows.T * _STEPS).round().long()
        best = merged([best, steps * _NUMBERS + (_NUMBERS - 1 - names)], k)
    return best


def merged(lists: Sequence[Tensor], k: int) -> Tensor:
    """The k nearest (Q, k) of several lists of neighbours (Q, any)."""
    return torch.cat(list(lists), dim=1).topk(k, dim=1).values


def similarities(neighbours: Tensor) -> Tensor:
    """Cosine similarity of each neighbour, fp64."""
    return neighbours.div(_NUMBERS, rounding_mode="floor").double() / _STEPS


def numbers_of(neighbours: Tensor) -> Tensor:
    """Number of each neighbour in the bank."""
    return _NUMBERS - 1 - neighbours.remainder(_NUMBERS)


def votes(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Fraction of the votes (Q, K) of each class, from neighbours and their labels, both (Q, k)."""
    # softmax is exp(similarity / T) over its sum, which changes no order and cannot overflow.
    weights = (similarity / temperature).softmax(dim=1)
    return weights.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights)
