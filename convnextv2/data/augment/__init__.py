"""Augmentation of training images: colour jitter, RandAugment, erasing, mixing.

Every operation is an FFCV operation on a batch, and its random draws depend on (seed, epoch,
sample) alone. numba caches its code on disk, so that only the first process of a machine compiles.
"""

from dataclasses import dataclass

from convnextv2.data.augment.color import ColorJitter
from convnextv2.data.augment.erasing import RandomErasing
from convnextv2.data.augment.mixing import Mixing
from convnextv2.data.augment.operation import Clock, InPlace
from convnextv2.data.augment.rand_augment import RandAugment
from convnextv2.data.collection import RGB, PixelFormat
from convnextv2.tasks import IMAGENET, Normalization

__all__ = ["Augment", "ColorJitter", "Mixing", "RandAugment", "RandomErasing"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Operations in the recipes' order; None leaves one out.

    Colour jitter and RandAugment are for RGB of 8 bits, the others for any channels.
    """

    color_jitter: ColorJitter | None = None
    rand_augment: RandAugment | None = None
    random_erasing: RandomErasing | None = None
    mixing: Mixing | None = None

    def operations(
        self, clock: Clock, pixel_format: PixelFormat = RGB, normalization: Normalization = IMAGENET
    ) -> list[InPlace]:
        """FFCV operations for images of a collection; they read [seed, epoch] from `clock`.

        With mixing, the last one returns (images, coefficients) instead of images.

        Raises:
            ValueError: When an operation on RGB's colours is asked for, and the images are not RGB.
        """
        colours = [made for made in (self.color_jitter, self.rand_augment) if made is not None]
        if colours and pixel_format != RGB:
            names = ", ".join(type(made).__name__ for made in colours)
            raise ValueError(f"{names}: for RGB of 8 bits only, the images have {pixel_format}")
        chosen = [made.operation(clock) for made in colours]
        if self.random_erasing is not None:
            chosen.append(self.random_erasing.operation(clock, normalization))
        if self.mixing is not None:
            chosen.append(self.mixing.operation(clock))
        return chosen
