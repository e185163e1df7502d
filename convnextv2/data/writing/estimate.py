"""What a collection will take, from a few of its images."""

import time
from dataclasses import dataclass

import numpy as np

from convnextv2.data.collection import Members, Source, UnreadableImage
from convnextv2.data.writing.encode import WriteSettings, encode

SAMPLED = 64


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes and time on one core, of all images; `unreadable` of the `sampled` ones."""

    samples: int
    source_bytes: int
    bytes: int
    seconds: float
    sampled: int
    unreadable: int


def estimate(source: Source, sequence: Members, settings: WriteSettings) -> Estimate:
    """Encode some images of `sequence` (rows of PLANNED), at equal distances, and scale up."""
    picks = np.unique(np.linspace(0, len(sequence) - 1, min(len(sequence), SAMPLED)).astype(int))
    rows = sequence[picks]
    stored, unreadable = 0, 0
    begin = time.perf_counter()
    # A part is opened once, however many of its images are wanted.
    for of_part in np.split(rows, np.flatnonzero(np.diff(rows["part"])) + 1):
        images = source.read(int(of_part["part"][0]), np.array(of_part["member"]))
        for image, key in zip(images, of_part["member"]["key"], strict=True):
            try:
                stored += len(encode(image, int(key), settings).data)
            except UnreadableImage:
                unreadable += 1
    seconds = time.perf_counter() - begin
    return Estimate(
        samples=len(sequence),
        source_bytes=int(sequence["member"]["size"].sum(dtype=np.uint64)),
        bytes=round(stored / len(picks) * len(sequence)),
        seconds=seconds / len(picks) * len(sequence),
        sampled=len(picks),
        unreadable=unreadable,
    )
