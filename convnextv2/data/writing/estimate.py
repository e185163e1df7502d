"""Estimates a collection's size when written, from a few of its images."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from convnextv2.data.collection import Members, Source, Stored, UnreadableImage
from convnextv2.data.writing.encode import WriteSettings, encode

SAMPLED = 64


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds (on one core) for all images; `unreadable` counts only `sampled` ones."""

    samples: int
    source_bytes: int
    bytes: int
    seconds: float
    sampled: int
    unreadable: int


def some_of(source: Source, sequence: Members) -> Iterator[tuple[Stored, int]]:
    """Some images of `sequence` (rows of PLANNED), at equal distances, with their keys."""
    picks = np.unique(np.linspace(0, len(sequence) - 1, min(len(sequence), SAMPLED)).astype(int))
    rows = sequence[picks]
    # A part is opened once, however many of its images are wanted.
    for of_part in np.split(rows, np.flatnonzero(np.diff(rows["part"])) + 1):
        images = source.read(int(of_part["part"][0]), np.array(of_part["member"]))
        yield from zip(images, of_part["member"]["key"].tolist(), strict=True)


def estimate(source: Source, sequence: Members, settings: WriteSettings) -> Estimate:
    """Encode some images of `sequence` (rows of PLANNED), and scale up."""
    stored, unreadable, sampled = 0, 0, 0
    begin = time.perf_counter()
    for image, key in some_of(source, sequence):
        sampled += 1
        try:
            stored += len(encode(image, key, settings).data)
        except UnreadableImage:
            unreadable += 1
    seconds = time.perf_counter() - begin
    return Estimate(
        samples=len(sequence),
        source_bytes=int(sequence["member"]["size"].sum(dtype=np.uint64)),
        bytes=round(stored / sampled * len(sequence)),
        seconds=seconds / sampled * len(sequence),
        sampled=sampled,
        unreadable=unreadable,
    )
