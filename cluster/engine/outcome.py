"""Whether a step was left out, on the device at once and on the host a step later."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """A step whose loss or gradients may be NaN or infinite, which the device finds out.

    Asking the device makes the host wait until it has computed the step, and the device then waits
    for the host to begin the next one. So the optimizer is handed `found_inf`, and the host reads
    it when the next step is under way.

    Attributes:
        found_inf: () fp32 on the device, 1 if the step is to be left out by all workers.
        own: () what this worker gave to that: not finite if it is to blame.
        loss: () of this worker.
        indices: Of this worker's samples.
    """

    found_inf: Tensor
    own: Tensor
    loss: Tensor
    indices: list[int]
    _on_host: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, total: Tensor, own: Tensor, loss: Tensor, indices: list[int]) -> "Outcome":
        """Judge by `total`, the sum of all workers' `own`: what is not finite makes it so."""
        found_inf = (~total.isfinite()).float()
        # Without a wait PyTorch takes page-locked memory for the copy.
        on_host, arrived = found_inf.to("cpu", non_blocking=True), None
        if found_inf.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(found_inf, own, loss, indices, on_host, arrived)

    def left_out(self) -> bool:
        """Whether the step was left out; waits for the device to get there."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return bool(self._on_host)
