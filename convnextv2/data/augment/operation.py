"""An augmentation as an FFCV operation: a compiled kernel that changes the batch in place."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.ffcv_compat import AllocationQuery, Operation

Clock = NDArray[np.uint64]
Kernel = Callable[..., None]


class InPlace(Operation):
    """Calls `kernel(images, indices, clock, *numbers)`; images are (B, H, W, C)
    uint8 or uint16.

    The clock is [seed, epoch]; the loader, which owns it, changes it between epochs.
    """

    def __init__(self, kernel: Kernel, clock: Clock, *numbers: float | NDArray[np.generic]) -> None:
        super().__init__()
        self.kernel, self.clock, self.numbers = kernel, clock, numbers

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        return previous_state, None

    def generate_code(self) -> Callable[..., Any]:
        def apply(images: Any, memory: Any, indices: Any) -> Any:
            self.kernel(images, indices, self.clock, *self.numbers)
            return images

        apply.with_indices = True  # type: ignore[attr-defined]
        return apply


class InPlaceWithCoefficients(InPlace):
    """Calls `kernel(images, indices, clock, coefficients, *numbers)`; returns those two.

    Coefficients are (B,) float32.
    """

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        return previous_state, AllocationQuery((1,), np.dtype("<f4"))

    def generate_code(self) -> Callable[..., Any]:
        def apply(images: Any, memory: Any, indices: Any) -> Any:
            if len(indices) % 2:
                raise ValueError(f"images are mixed in pairs, this batch has {len(indices)}")
            coefficients = memory[:, 0]
            self.kernel(images, indices, self.clock, coefficients, *self.numbers)
            return images, coefficients

        apply.with_indices = True  # type: ignore[attr-defined]
        return apply
