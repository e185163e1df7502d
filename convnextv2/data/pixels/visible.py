"""Images of any channels as pictures for people."""

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import Pixels
from convnextv2.tasks import Normalization

_DEVIATIONS = 2.0


def visible(images: Pixels, normalization: Normalization) -> NDArray[np.uint8]:
    """(..., H, W, channels) as (..., H, W, 3) of 8 bits.

    RGB stays as it is. Of more channels the first three are red, green and blue, of fewer the first
    is grey; black and white are two deviations from a channel's mean.
    """
    if images.dtype == np.uint8 and images.shape[-1] == 3:
        return images.astype(np.uint8, copy=False)
    chosen = [0, 1, 2] if images.shape[-1] >= 3 else [0, 0, 0]
    mean, std = (np.array(numbers, np.float32)[chosen] for numbers in normalization[:2])
    values = images[..., chosen].astype(np.float32) / normalization.white
    shades = 127.5 * (1 + (values - mean) / (_DEVIATIONS * std))
    return np.clip(np.rint(shades), 0, 255).astype(np.uint8)
