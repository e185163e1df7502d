"""What happens to a view before it is a training image: colour, RandAugment, erasing, mixing.

Every operation is an FFCV operation on the batch; what it draws depends on (seed, epoch, sample)
alone. Its code is kept on disk by numba, so that only the first process of a machine compiles it.
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
        """FFCV operations that look at `clock`, [seed, epoch], for images of a collection.

        With mixing, the last one hands on (images, coefficients) in place of images.

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
