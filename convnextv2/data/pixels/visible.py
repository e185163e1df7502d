"""Images with any number of channels as pictures to look at."""

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import Pixels
from convnextv2.tasks import Normalization

_DEVIATIONS = 2.0


def visible(images: Pixels, normalization: Normalization) -> NDArray[np.uint8]:
    """Convert (..., H, W, channels) to pictures (..., H, W, 3) of 8 bits.

    8-bit RGB stays as it is. Otherwise the first three channels are shown as red, green and blue
    or, if there are fewer, the first one as grey. Black and white are two standard deviations below
    and above the mean of a channel.
    """
    if images.dtype == np.uint8 and images.shape[-1] == 3:
        return images.astype(np.uint8, copy=False)
    chosen = [0, 1, 2] if images.shape[-1] >= 3 else [0, 0, 0]
    mean, std = (np.array(numbers, np.float32)[chosen] for numbers in normalization[:2])
    values = images[..., chosen].astype(np.float32) / normalization.white
    shades = 127.5 * (1 + (values - mean) / (_DEVIATIONS * std))
    return np.clip(np.rint(shades), 0, 255).astype(np.uint8)
