"""Ways to run the one encoder on visible patches only. Equal results, different cost.

A backend is built for one batch of masks and serves the encoder as its `Sites`; `to_dense`
brings the last stage's features back to (B, H, W, C) with zeros at masked sites.
"""

from typing import Literal, Protocol

from torch import Tensor

from convnextv2.layers import Sites
from convnextv2.sparse.gather import VisiblePatches
from convnextv2.sparse.masked_dense import MaskedGrid

GRNScope = Literal["image", "batch"]
Backend = Literal["gather", "masked-dense"]


class SparseSites(Sites, Protocol):
    """Sites of a masked batch."""

    def to_dense(self, x: Tensor) -> Tensor:
        """Bring the encoder's output back to the grid: (B, H, W, C), zeros at masked sites."""


class SparseBackend(Protocol):
    """How to build the sites from masks (B, L) bool over a grid of patches (rows, columns)."""

    def __call__(
        self, mask: Tensor, grid: tuple[int, int], patch_size: int, grn_scope: GRNScope
    ) -> SparseSites: ...


BACKENDS: dict[str, SparseBackend] = {"gather": VisiblePatches, "masked-dense": MaskedGrid}


def backend_of(name: str) -> SparseBackend:
    """Return the backend called `name`; raises ValueError naming those there are."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
