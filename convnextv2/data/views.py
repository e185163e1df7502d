"""Views of a stored image: decode, crop, resize and flip as one FFCV operation.

FFCV's own random operations draw from an unseedable per-thread generator. Here every draw is a
function of (seed, epoch, sample index): the clock, an array of those two, reaches the compiled
code through FFCV's storage state (see `convnextv2.data.load`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ffcv.libffcv import imdecode, resize_crop
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from numba.extending import register_jitable

from convnextv2.randomness import Draw, uniform

CROP_ATTEMPTS = 10
JPEG = 0  # FFCV's code for it in an image's metadata


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """Random-resized crop and horizontal flip (torchvision's RandomResizedCrop semantics).

    `scale` bounds the crop's share of the area, `ratio` its width / height.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


@dataclass(frozen=True, kw_only=True)
class CenterView:
    """The central crop of `crop` times the largest box with the output's shape."""

    size: tuple[int, int]
    crop: float = 0.875


View = RandomView | CenterView
Crop = tuple[int, int, int, int, bool]  # top, left, height, width, mirrored


class DecodeView(Operation):
    """Decoder for FFCV's RGBImageField: (height, width, 3) uint8 of the given view."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape = (*self.view.size, 3)
        byte = np.dtype("<u1")
        # One decoding buffer per sample, for the largest image; raw images are read in place.
        stored_as_jpeg = bool((self.metadata["mode"] == JPEG).any())
        largest = int(self.metadata["width"].max()) * int(self.metadata["height"].max()) * 3
        return (
            replace(previous_state, jit_mode=True, shape=shape, dtype=byte),
            (
                AllocationQuery(shape, byte),
                AllocationQuery((largest if stored_as_jpeg else 1,), byte),
                AllocationQuery((1,), byte),
            ),
        )

    def generate_code(self) -> Callable[..., Any]:
        choose = Compiler.compile(crop_chooser(self.view))
        read, decode_jpeg = self.memory_read, Compiler.compile(imdecode)
        resize, mirror = Compiler.compile(resize_crop), Compiler.compile(mirror_columns)
        samples = Compiler.get_iterator()

        def decode(indices: Any, memory: Any, metadata: Any, storage: Any) -> Any:
            images, scratch, failed = memory
            seed, epoch = storage[3]
            for slot in samples(len(indices)):
                sample = indices[slot]
                field = metadata[sample]
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                stored = read(field["data_ptr"], storage)
                top, left, h, w, flip = choose(seed, epoch, np.uint64(sample), height, width)
                failed[slot, 0] = 0
                if field["mode"] == JPEG:
                    pixels = scratch[slot][: 3 * height * width].reshape(height, width, 3)
                    failed[slot, 0] = decode_jpeg(
                        stored, pixels, height, width, height, width, 0, 0, 1, 1, False, False
                    )
                    resize(pixels, top, top + h, left, left + w, images[slot])
                else:
                    pixels = stored.reshape(height, width, 3)
                    resize(pixels, top, top + h, left, left + w, images[slot])
                if flip:
                    mirror(images[slot])
            if failed[: len(indices)].any():
                raise ValueError("a JPEG in the .beton file cannot be decoded")
            return images[: len(indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


@register_jitable
def mirror_columns(image: Any) -> None:
    """Flip (H, W, C) left to right in place."""
    width = image.shape[1]
    for row in range(image.shape[0]):
        for left in range(width // 2):
            for channel in range(image.shape[2]):
                kept = image[row, left, channel]
                image[row, left, channel] = image[row, width - 1 - left, channel]
                image[row, width - 1 - left, channel] = kept


def crop_chooser(view: View) -> Callable[..., Crop]:
    """The function (seed, epoch, sample, height, width) -> crop, for numba to compile."""
    if isinstance(view, CenterView):
        return _center_chooser(view)
    (scale_low, scale_high), (ratio_low, ratio_high) = view.scale, view.ratio
    log_low, log_high = float(np.log(ratio_low)), float(np.log(ratio_high))
    flip, first, flip_draw = view.flip, int(Draw.CROP), np.uint64(Draw.FLIP)

    def choose(seed: Any, epoch: Any, sample: Any, height: Any, width: Any) -> Crop:
        mirrored = uniform(seed, epoch, sample, flip_draw) < flip
        for attempt in range(CROP_ATTEMPTS):
            draw = first + 4 * attempt
            u_area = uniform(seed, epoch, sample, np.uint64(draw))
            u_ratio = uniform(seed, epoch, sample, np.uint64(draw + 1))
            area = height * width * (scale_low + u_area * (scale_high - scale_low))
            ratio = np.exp(log_low + u_ratio * (log_high - log_low))
            w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(uniform(seed, epoch, sample, np.uint64(draw + 2)) * (height - h + 1))
                left = int(uniform(seed, epoch, sample, np.uint64(draw + 3)) * (width - w + 1))
                return top, left, h, w, mirrored
        # As in torchvision: the largest central crop whose ratio is allowed.
        w, h = int(width), int(height)
        if width < ratio_low * height:
            h = round(width / ratio_low)
        elif width > ratio_high * height:
            w = round(height * ratio_high)
        return (int(height) - h) // 2, (int(width) - w) // 2, h, w, mirrored

    return choose


def _center_chooser(view: CenterView) -> Callable[..., Crop]:
    (out_height, out_width), crop = view.size, view.crop

    def choose(seed: Any, epoch: Any, sample: Any, height: Any, width: Any) -> Crop:
        # Products before quotients: 61 / 224 * 224 is less than 61.
        h = max(1, int(crop * min(height, width * out_height / out_width)))
        w = max(1, int(crop * min(width, height * out_width / out_height)))
        return (int(height) - h) // 2, (int(width) - w) // 2, h, w, False

    return choose
