"""Backend `auto`: which backend for a batch of masks, by measurement.

CPU time of a training step, as a multiple of `gather`'s (medians of pairs; 224 px, fp32, one thread
of an AMD EPYC, 2026-11-24; `make bench-model` measures the machine at hand):

    size, batch,            compiled kernels          without them
    share masked            spconv  masked-dense      spconv  masked-dense
    atto, 8, 0.1              1.43      1.64            1.16      1.09
    atto, 8, 0.6              1.32      3.01            0.99      1.66
    atto, 8, 0.9              1.21      5.07            0.73      2.60
    tiny, 4, 0.6              1.29      3.35            0.92      2.14
    tiny, 4, 0.9                                        0.67      4.17

On a GPU `gather` is the fastest (docs/gpu.md); spconv has not been measured there.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from convnextv2.kernels.build import library

SPCONV_GAINS_FROM = 0.6
"""Fraction of masked patches from which `spconv` is as fast as `gather` without kernels."""


def choose(mask: Tensor, device: torch.device) -> tuple[str, str]:
    """Return a backend's name and the reason, for masks (B, L) bool, true where hidden.

    `device` is where the images are.
    """
    hidden = mask.sum(dim=1)
    if hidden.min() != hidden.max():
        return "masked-dense", "the images show different numbers of patches"
    if device.type != "cpu":
        return "gather", "the fastest measured on a GPU (docs/gpu.md)"
    if library() is not None:
        return "gather", "the fastest measured with the compiled CPU kernels"
    if hidden[0] >= SPCONV_GAINS_FROM * mask.shape[1] and find_spec("spconv") is not None:
        return "spconv", "the fastest measured without compiled CPU kernels"
    return "gather", "no compiled CPU kernels, and no spconv or little that is masked"
