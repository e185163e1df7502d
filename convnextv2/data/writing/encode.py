"""Images as they are stored: JPEGs or pixels, no larger than asked for.

The modes are those of FFCV's RGBImageField. A JPEG that is small enough is kept byte for byte. Mode
"proportion" chooses by a hash of the image's name.
"""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, TypeVar, cast

import cv2
import numpy as np

from convnextv2.data.collection import (
    RGB,
    DataError,
    PixelFormat,
    Pixels,
    RGBImage,
    Stored,
    UnreadableImage,
)
from convnextv2.data.pixels import decode, decode_bands, jpeg, passes_through
from convnextv2.randomness import Draw, uniform

Mode = Literal["raw", "jpg", "smart", "proportion"]
JPEG, RAW = 0, 1
Image = TypeVar("Image", bound=Pixels)
COMPRESS = Draw.HOLD_OUT + 3
LONGEST_SIDE = 65_535
"""Largest side that FFCV's records can hold, in pixels."""


@dataclass(frozen=True, kw_only=True)
class WriteSettings:
    """How a collection is stored.

    Attributes:
        mode: FFCV's: JPEGs, pixels, pixels of small images ("smart"), or a share of both. Images
            that are not RGB of 8 bits are stored as pixels.
        channels: 3 converts all images to RGB; for any other number, all images must have it.
        bits: Bits of a value, 8 or 16; None: 8 for RGB, else what the images have.
        max_resolution: Longest side in pixels; larger images are shrunk.
        jpeg_quality: Quality of images that are encoded as JPEG.
        smart_threshold: Mode "smart": images of more raw bytes than this become JPEGs.
        compress_probability: Mode "proportion": the fraction of images that become JPEGs.
        shard_bytes: Approximate size of a shard.
        num_shards: Number of shards; replaces `shard_bytes`.
        shuffle_buffer_bytes: Size of the buffer of encoded images from which the next is drawn.
        page_size: Size of FFCV's pages in bytes; no image may be larger.
        max_unreadable: Images that may be left out; more are an error.
    """

    mode: Mode = "jpg"
    max_resolution: int | None = None
    jpeg_quality: int = 90
    smart_threshold: int | None = None
    compress_probability: float = 0.5
    shard_bytes: int = 30 * 10**9
    num_shards: int | None = None
    shuffle_buffer_bytes: int = 256 << 20
    page_size: int = 8 << 20
    max_unreadable: int = 0
    channels: int = 3
    bits: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {value}; expected {expected}"
            for name, value, expected, fine in (
                ("max_resolution", self.max_resolution, "1 to 65535", _within(self.max_resolution)),
                ("jpeg_quality", self.jpeg_quality, "1 to 100", 1 <= self.jpeg_quality <= 100),
                (
                    "compress_probability",
                    self.compress_probability,
                    "0 to 1",
                    0 <= self.compress_probability <= 1,
                ),
                ("shard_bytes", self.shard_bytes, "more than 0", self.shard_bytes > 0),
                (
                    "num_shards",
                    self.num_shards,
                    "at least 1",
                    self.num_shards is None or self.num_shards > 0,
                ),
                (
                    "page_size",
                    self.page_size,
                    "a power of two from 2 MiB to 2 GiB",
                    self.page_size in {1 << power for power in range(21, 32)},
                ),
            )
            if not fine
        ]
        if self.channels < 1:
            problems.append(f"channels = {self.channels}; expected at least 1")
        if self.bits not in (None, 8, 16):
            problems.append(f"bits = {self.bits}; expected 8 or 16")
        if self.mode in ("smart", "proportion") and self.pixel_format != RGB:
            problems.append(f"mode {self.mode} is for RGB of 8 bits; set raw, all else is pixels")
        if self.mode == "smart" and self.smart_threshold is None:
            problems.append("mode smart needs a smart_threshold, in bytes")
        if problems:
            raise DataError("; ".join(problems))

    @property
    def pixel_format(self) -> PixelFormat:
        """The stored format; of 8 bits while `bits` is None, until images have been read."""
        return PixelFormat(self.channels, self.bits or 8)

    @property
    def content(self) -> dict[str, object]:
        """What decides the bytes of the shards."""
        known = asdict(self)
        del known["max_unreadable"]
        if (self.channels, self.bits) in ((3, None), (3, 8)):
            # Left out for RGB of 8 bits, so that shards written before these settings existed count
            # as complete.
            del known["channels"], known["bits"]
        return known


class Encoded(NamedTuple):
    """Bytes as they are stored, with the fields of FFCV's record."""

    mode: int
    height: int
    width: int
    data: bytes

    def pixels(self, pixel_format: PixelFormat) -> Pixels:
        """What is stored as pixels, as an array."""
        shape = (self.height, self.width, pixel_format.channels)
        return np.frombuffer(self.data, pixel_format.dtype).reshape(shape)


def encode(stored: Stored, key: int, settings: WriteSettings) -> Encoded:
    """Encode a source's image as it is stored.

    Raises:
        UnreadableImage: When it cannot be decoded or encoded, is too large for a page, or does not
            have the collection's channels.
    """
    if settings.pixel_format != RGB:
        return _fitting(_as_bands(stored, settings), stored.name, settings)
    name, content = stored
    if settings.mode == "jpg" and isinstance(content, bytes):
        size = passes_through(content, settings.max_resolution)
        if size is not None and len(content) <= settings.page_size:
            return Encoded(JPEG, *size, content)
    pixels = _shrink(decode(content, name), settings.max_resolution or LONGEST_SIDE)
    mode = JPEG if _as_jpeg(pixels, key, settings) else RAW
    if mode == JPEG:
        pixels = _shrink(pixels, jpeg.LONGEST_SIDE)
    height, width = pixels.shape[:2]
    data = _jpeg(pixels, settings.jpeg_quality, name) if mode == JPEG else pixels.tobytes()
    return _fitting(Encoded(mode, height, width, data), name, settings)


def _as_bands(stored: Stored, settings: WriteSettings) -> Encoded:
    """All channels of an image, shrunk if need be."""
    wanted = settings.pixel_format
    values = decode_bands(stored.content, stored.name)
    found = PixelFormat(values.shape[2], 8 * values.itemsize)
    if found != wanted:
        raise UnreadableImage(f"{stored.name}: {found}, and the collection has {wanted}")
    values = _shrink(values, settings.max_resolution or LONGEST_SIDE)
    height, width = values.shape[:2]
    return Encoded(RAW, height, width, values.tobytes())


def _fitting(encoded: Encoded, name: str, settings: WriteSettings) -> Encoded:
    """The image, if it fits a page."""
    _, height, width, _ = encoded
    if len(encoded.data) > settings.page_size:
        raise UnreadableImage(
            f"{name}: {len(encoded.data):,} bytes at {width} x {height} are more than a page of "
            f"{settings.page_size:,}; set max_resolution"
        )
    return encoded


def _shrink(pixels: Image, longest_side: int) -> Image:
    height, width = pixels.shape[:2]
    ratio = longest_side / max(height, width)
    if ratio >= 1:
        return pixels
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    if pixels.shape[2] == 3:
        return cast(Image, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    # Of more than four channels OpenCV takes only one at a time.
    bands = [np.ascontiguousarray(pixels[..., number]) for number in range(pixels.shape[2])]
    shrunk = [cv2.resize(band, size, interpolation=cv2.INTER_AREA) for band in bands]
    return cast(Image, np.stack(shrunk, axis=-1))


def _as_jpeg(pixels: RGBImage, key: int, settings: WriteSettings) -> bool:
    if settings.mode == "smart":
        return pixels.nbytes > (settings.smart_threshold or 0)
    if settings.mode == "proportion":
        zero, draw = np.zeros(1, np.uint64), np.full(1, COMPRESS, np.uint64)
        chance = uniform(zero, zero, np.array([key], np.uint64), draw)[0]
        return bool(chance < settings.compress_probability)
    return settings.mode == "jpg"


def _jpeg(pixels: RGBImage, quality: int, name: str) -> bytes:
    blue_first = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    reason = ""
    try:
        # Most of what it refuses OpenCV tells by this flag alone.
        done, data = cv2.imencode(".jpg", blue_first, [int(cv2.IMWRITE_JPEG_QUALITY), quality])
    except cv2.error as error:
        done, reason = False, f": {error.err}"
    if not done:
        height, width = pixels.shape[:2]
        raise UnreadableImage(f"{name}: the JPEG encoder refuses it at {width} x {height}{reason}")
    encoded: bytes = data.tobytes()
    return encoded


def _within(side: int | None) -> bool:
    return side is None or 1 <= side <= LONGEST_SIDE
