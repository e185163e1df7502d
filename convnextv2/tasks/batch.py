"""Batches, and how they are copied safely from a loader's buffers to the device."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a step trains on; the images are views of FFCV's buffers.

    Attributes:
        images: (B, H, W, C) uint8 or uint16, which is (B, C, H, W) in channels_last memory.
        labels: (B,) int64; where images may be of several classes, (B, classes) float32 of 0 and
            1.
        indices: (B,) int64, sample numbers; they stay on the CPU.
        epoch: The epoch that random draws depend on.
        coefficients: (B,) float32, the weight of each image's own label where images are mixed with
            their neighbours (`convnextv2.data.augment`), else None.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int
    coefficients: Tensor | None = None

    @property
    def partner_labels(self) -> Tensor | None:
        """Labels of the images mixed in, shaped as `labels`; rows 2q and 2q + 1 are partners."""
        if self.coefficients is None:
            return None
        return self.labels.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)

    def to(self, device: torch.device) -> "Batch":
        """Begin copies to `device`; on CPU the tensors are shared.

        Copies to a GPU may not have ended when this returns; loops use `on_device`.
        """
        mixed = self.coefficients
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            coefficients=None if mixed is None else mixed.to(device, non_blocking=True),
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that `stream` uses this memory, so that it is not reused too early."""
        for tensor in (self.images, self.labels, self.coefficients):
            if tensor is not None:
                tensor.record_stream(stream)


def on_device(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    """The batches of a loader on `device`, in order, each good for as long as it is held.

    A loader reuses a batch's page-locked buffers as soon as it is asked for the next batch, even if
    a busy GPU has not copied them yet. So a separate stream copies, in parallel to training, and
    the next batch is asked for only when the copy has ended. One batch is copied ahead. On CPU the
    tensors are shared and nothing is copied ahead.
    """
    with closing(batches):
        if device.type == "cpu":
            yield from batches
        else:
            yield from _copied_ahead(batches, device)


def _copied_ahead(batches: Generator[Batch], device: torch.device) -> Generator[Batch]:
    stream, copied = torch.cuda.Stream(device), torch.cuda.Event()
    ahead: Batch | None = None
    try:
        for batch in batches:
            with torch.cuda.stream(stream):
                copy = batch.to(device)
                copied.record(stream)
            if ahead is not None:
                yield ahead
            # After this the loader is asked for the next batch and may reuse its buffers.
            copied.synchronize()
            copy.record_stream(torch.cuda.current_stream(device))
            ahead = copy
        if ahead is not None:
            yield ahead
    finally:
        # A loader that is left early frees its buffers; no copy may still read from them.
        copied.synchronize()
