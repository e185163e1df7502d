"""Views of a stored image: what is cut out of it, resized and flipped, before augmentation.

FFCV's own random operations use a generator per thread that cannot be seeded. Here every draw is a
function of (seed, epoch, sample index). The decoder is one FFCV operation: numba chooses the crop
box, C++ (`convnextv2.data.decoding`) decodes what the box needs. Compiled code is cached on disk,
so that only the first process of a machine compiles it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convnextv2.data.collection import RGB, PixelFormat, Pixels
from convnextv2.data.decoding import Problem, library, locate, view, view_bands
from convnextv2.data.ffcv_compat import AllocationQuery, Operation, njit, prange
from convnextv2.randomness import Draw, uniform

Interpolation = Literal["bicubic", "area"]
Decode = Literal["reduced", "exact", "full"]

FILTERS: dict[Interpolation, int] = {"bicubic": 0, "area": 1}
DECODES: dict[Decode, int] = {"reduced": 0, "exact": 1, "full": 2}
CROP_ATTEMPTS = 10
RANDOM, CENTER, SQUASH = 0, 1, 2
CROP, FLIP = int(Draw.CROP), int(Draw.FLIP)


@dataclass(frozen=True, kw_only=True)
class RandomView:
    """Random-resized crop and horizontal flip (torchvision's RandomResizedCrop semantics).

    Attributes:
        size: Height and width of the result.
        scale: Bounds of the crop's fraction of the image's area.
        ratio: Bounds of its width / height.
        flip: Probability of a horizontal flip.
        interpolation: Pillow's antialiased "bicubic", or OpenCV's INTER_AREA, which is FFCV's own.
        decode: How much of a JPEG is decoded. "reduced": what the crop needs, by the inverse DCT
            at 1/2, 1/4 or 1/8 scale where the crop is so much larger than `size` (docs/data.md
            shows what that does to pixels). "exact": what the crop needs, the same pixels as
            "full", which decodes everything.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: Interpolation = "bicubic"
    decode: Decode = "reduced"

    @property
    def parameters(self) -> tuple[int, NDArray[np.float64]]:
        """Kind and numbers, as the compiled code takes them."""
        (low, high), (thin, wide) = self.scale, self.ratio
        return RANDOM, np.array([low, high, np.log(thin), np.log(wide), self.flip])


@dataclass(frozen=True, kw_only=True)
class CenterView:
    """Evaluation below 384 px: resize so that `size / crop` is covered, then cut out the centre."""

    size: tuple[int, int]
    crop: float = 0.875
    interpolation: Interpolation = "bicubic"
    decode: Decode = "exact"

    @property
    def parameters(self) -> tuple[int, NDArray[np.float64]]:
        """Kind and numbers, as the compiled code takes them."""
        height, width = self.size
        # The small addend keeps quotients like 28 / 0.875 from being rounded down.
        return CENTER, np.floor(np.array([height, width]) / self.crop + 1e-9)


@dataclass(frozen=True, kw_only=True)
class SquashView:
    """Evaluation from 384 px on: the whole image, resized without regard to its ratio."""

    size: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    decode: Decode = "exact"

    @property
    def parameters(self) -> tuple[int, NDArray[np.float64]]:
        """Kind and numbers, as the compiled code takes them."""
        return SQUASH, np.zeros(0)


View = RandomView | CenterView | SquashView


class DamagedImage(RuntimeError):
    """An image of a shard cannot be decoded; `sample` says which."""

    def __init__(self, sample: int, problem: Problem) -> None:
        super().__init__(sample, problem)
        self.sample, self.problem = sample, problem


class DecodeView(Operation):
    """Decoder of the field "image": (height, width, channels) of the given view.

    Its storage state is (shards' table, clock), the clock being [seed, epoch].
    """

    def __init__(self, view: View, pixel_format: PixelFormat = RGB) -> None:
        super().__init__()
        library()
        self.view, self.pixel_format = view, pixel_format

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        shape, dtype = (*self.view.size, self.pixel_format.channels), self.pixel_format.dtype
        return (
            replace(previous_state, jit_mode=True, shape=shape, dtype=dtype),
            (AllocationQuery(shape, dtype), AllocationQuery((1,), np.dtype("<u1"))),
        )

    def generate_code(self) -> Callable[..., Any]:
        kind, numbers = self.view.parameters
        filter_code = FILTERS[self.view.interpolation]
        decode_code = DECODES[self.view.decode]

        def decode(indices: Any, memory: Any, metadata: Any, storage: Any) -> Any:
            images, problems = memory
            table, clock = storage
            serve_views(
                table, indices, clock, kind, numbers, filter_code, decode_code, images, problems
            )
            bad = np.flatnonzero(problems)
            if len(bad):
                raise DamagedImage(int(indices[bad[0]]), Problem(int(problems[bad[0], 0])))
            return images

        return decode


@njit(cache=True, nogil=True, parallel=True)
def serve_views(
    table: NDArray[np.void],
    indices: NDArray[np.int64],
    clock: NDArray[np.uint64],
    kind: int,
    numbers: NDArray[np.float64],
    filter_code: int,
    decode_code: int,
    images: Pixels,
    problems: NDArray[np.uint8],
) -> None:
    """Fill `images` (B, H, W, channels) with the views of `indices`, and `problems` (B, 1)."""
    pixel_bytes = images.shape[3] * images.itemsize
    for slot in prange(len(indices)):
        place = np.empty(6, np.int64)
        sample = np.uint64(indices[slot])
        problem = locate(table.ctypes.data, len(table), sample, pixel_bytes, place.ctypes.data)
        if problem == 0:
            box = choose_box(kind, numbers, clock, sample, place[3], place[4], images.shape[1:3])
            problem = show(place, box, filter_code, decode_code, images[slot])
        problems[slot, 0] = problem


@njit(cache=True, nogil=True)
def show(
    place: NDArray[np.int64],
    box: NDArray[np.float64],
    filter_code: int,
    decode_code: int,
    image: Pixels,
) -> int:
    """Write the box of the image at `place` to `image` (H, W, channels); returns the problem."""
    height, width, channels = image.shape
    source, cut, out = place.ctypes.data, box.ctypes.data, image.ctypes.data
    if channels == 3 and image.itemsize == 1:
        return view(source, cut, filter_code, decode_code, height, width, out)
    return view_bands(source, cut, filter_code, height, width, channels, image.itemsize, out)


@njit(cache=True, nogil=True)
def choose_box(
    kind: int,
    numbers: NDArray[np.float64],
    clock: NDArray[np.uint64],
    sample: np.uint64,
    height: int,
    width: int,
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """The box of a view: top, left, bottom, right, mirrored, whether resizing may read beyond."""
    if kind == RANDOM:
        top, left, h, w, mirrored = random_crop(numbers, clock[0], clock[1], sample, height, width)
        return np.array([top, left, top + h, left + w, mirrored, 0.0])
    if kind == CENTER:
        # One pass gives the pixels of resizing the whole image to (tall, wide) and cutting then.
        grow = max(numbers[0] / height, numbers[1] / width)
        tall, wide = int(height * grow + 1e-9), int(width * grow + 1e-9)
        top = np.rint((tall - size[0]) / 2.0) * height / tall
        left = np.rint((wide - size[1]) / 2.0) * width / wide
        bottom, right = top + size[0] * height / tall, left + size[1] * width / wide
        return np.array([top, left, bottom, right, 0.0, 1.0])
    return np.array([0.0, 0.0, float(height), float(width), 0.0, 0.0])


@njit(cache=True, nogil=True)
def random_crop(
    numbers: NDArray[np.float64],
    seed: np.uint64,
    epoch: np.uint64,
    sample: np.uint64,
    height: int,
    width: int,
) -> tuple[int, int, int, int, bool]:
    """Top, left, height, width and whether to mirror, as torchvision chooses them."""
    scale_low, scale_high, log_low, log_high, flip = numbers
    mirrored = uniform(seed, epoch, sample, np.uint64(FLIP)) < flip
    for attempt in range(CROP_ATTEMPTS):
        draw = CROP + 4 * attempt
        u_area = uniform(seed, epoch, sample, np.uint64(draw))
        u_ratio = uniform(seed, epoch, sample, np.uint64(draw + 1))
        area = height * width * (scale_low + u_area * (scale_high - scale_low))
        ratio = np.exp(log_low + u_ratio * (log_high - log_low))
        w, h = int(np.rint(np.sqrt(area * ratio))), int(np.rint(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(seed, epoch, sample, np.uint64(draw + 2)) * (height - h + 1))
            left = int(uniform(seed, epoch, sample, np.uint64(draw + 3)) * (width - w + 1))
            return top, left, h, w, mirrored
    # As in torchvision: the largest central crop whose ratio is allowed.
    w, h = int(width), int(height)
    if width < np.exp(log_low) * height:
        h = max(1, int(np.rint(width / np.exp(log_low))))
    elif width > np.exp(log_high) * height:
        w = max(1, int(np.rint(height * np.exp(log_high))))
    return (int(height) - h) // 2, (int(width) - w) // 2, h, w, mirrored
