"""NumPy's .npy files: images with any number of channels."""

from io import BytesIO

import numpy as np

from convnextv2.data.pixels.opening import check_size
from convnextv2.data.pixels.samples import Samples, unsigned


def samples(content: bytes) -> Samples:
    """Read (H, W), (H, W, channels) or (channels, H, W): the shorter outer axis is the channels.

    Raises:
        ValueError: When the file is damaged, or holds Python objects or an array of another shape.
    """
    try:
        values = np.load(BytesIO(content), allow_pickle=False)
    except MemoryError as error:  # NumPy makes room for what the header says before it reads.
        raise ValueError(f"its header is damaged: {error}") from error
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"an array of shape {values.shape}; (height, width, channels) is read")
    if values.shape[0] < values.shape[2]:
        values = np.moveaxis(values, 0, -1)
    check_size(values.shape[1], values.shape[0])
    return Samples(np.ascontiguousarray(unsigned(values)))
