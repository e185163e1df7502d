"""What happens to a view before it is a training image: colour, RandAugment, erasing, mixing.

Every operation is an FFCV operation on the batch; what it draws depends on (seed, epoch, sample)
alone. Its code is kept on disk by numba, so that only the first process of a machine compiles it.
"""

from dataclasses import dataclass
from typing import Any

from convnextv2.data.augment.color import ColorJitter
from convnextv2.data.augment.erasing import RandomErasing
from convnextv2.data.augment.mixing import Mixing
from convnextv2.data.augment.operation import Clock
from convnextv2.data.augment.rand_augment import RandAugment

__all__ = ["Augment", "ColorJitter", "Mixing", "RandAugment", "RandomErasing"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Operations in the recipes' order; None leaves one out."""

    color_jitter: ColorJitter | None = None
    rand_augment: RandAugment | None = None
    erasing: RandomErasing | None = None
    mixing: Mixing | None = None

    def operations(self, clock: Clock) -> list[Any]:
        """FFCV operations that look at `clock`, [seed, epoch]. With mixing, the last one hands on
        (images, coefficients) in place of images.
        """
        chosen = (self.color_jitter, self.rand_augment, self.erasing, self.mixing)
        return [settings.operation(clock) for settings in chosen if settings is not None]
