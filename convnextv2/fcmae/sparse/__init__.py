"""Ways to run the one encoder on visible patches only. Equal results, different cost.

A backend is built for one batch of masks and serves the encoder as its `Sites`; `to_dense`
brings the last stage's features back to (B, H, W, C) with zeros at masked sites.
"""

import logging
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from convnextv2.fcmae.sparse.auto import choose
from convnextv2.fcmae.sparse.gather import VisiblePatches
from convnextv2.fcmae.sparse.masked_dense import MaskedGrid
from convnextv2.layers import Sites

log = logging.getLogger(__name__)

GRNScope = Literal["image", "batch"]
Backend = Literal["auto", "gather", "spconv", "masked-dense"]


class SparseSites(Sites, Protocol):
    """Sites of a masked batch."""

    def to_dense(self, x: Tensor) -> Tensor:
        """Bring the encoder's output back to the grid: (B, H, W, C), zeros at masked sites."""


class SparseBackend(Protocol):
    """How to build the sites from masks (B, L) bool over a grid of patches (rows, columns).

    `device` is that of the images; by default it is that of the masks. Masks on the CPU are faster
    for a GPU, too: the number of sites is read from them without waiting for the GPU.
    """

    def __call__(
        self,
        mask: Tensor,
        grid: tuple[int, int],
        patch_size: int,
        grn_scope: GRNScope,
        device: torch.device | None = None,
    ) -> SparseSites: ...


class Auto:
    """The backend that `sparse.auto` picks for the masks; logs which one when it changes.

    Attributes:
        chosen: Name of the backend of the last batch, "" before the first.
    """

    def __init__(self) -> None:
        self.chosen = ""

    def __call__(
        self,
        mask: Tensor,
        grid: tuple[int, int],
        patch_size: int,
        grn_scope: GRNScope,
        device: torch.device | None = None,
    ) -> SparseSites:
        chosen, reason = choose(mask, device or mask.device)
        if chosen != self.chosen:
            log.info("backend 'auto' is %r: %s", chosen, reason)
            self.chosen = chosen
        return backend_of(chosen)(mask, grid, patch_size, grn_scope, device)


def backend_of(name: str) -> SparseBackend:
    """Return the backend called `name`.

    Raises:
        ValueError: For an unknown name, or when the backend's library is not installed.
    """
    if name == "auto":
        return Auto()
    if name == "gather":
        return VisiblePatches
    if name == "masked-dense":
        return MaskedGrid
    if name == "spconv":
        return _spconv()
    raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(get_args(Backend))}")


def _spconv() -> SparseBackend:
    try:
        from convnextv2.fcmae.sparse.spconv_sites import SparseTensors
    except ImportError as error:
        raise ValueError(
            f"backend 'spconv' needs the library spconv, which cannot be imported ({error}): "
            "pip install 'convnextv2[spconv]' (CPU) or spconv-cu126 (GPUs)"
        ) from error
    return SparseTensors
