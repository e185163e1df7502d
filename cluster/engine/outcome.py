"""Whether a step was left out, on the device at once and on the host a step later; the counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster import group


class NonFinite(RuntimeError):
    """Too many steps in a row had a loss or gradient that is NaN or infinite."""


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
    def of(
        cls, total: Tensor, stop: Tensor, own: Tensor, loss: Tensor, indices: list[int]
    ) -> "Outcome":
        """Judge by `total`, the sum of all workers' `own`: what is not finite makes it so.

        `stop` is how many workers were asked to stop.
        """
        found_inf = (~total.isfinite()).float()
        # Without a wait PyTorch takes page-locked memory for the copy.
        on_host = torch.stack([found_inf, stop.float()]).to("cpu", non_blocking=True)
        arrived = None
        if found_inf.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(found_inf, own, loss, indices, on_host, arrived)

    def left_out(self) -> bool:
        """Whether the step was left out; waits for the device to get there."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return bool(self._on_host[0])

    def stops(self) -> bool:
        """Whether some worker was asked to stop; for whoever has asked `left_out` before."""
        return bool(self._on_host[1])


class StepCounts:
    """Steps done and left out, which all workers count alike.

    Args:
        max_skipped_steps: So many left out in a row are an error.

    Attributes:
        updates: Optimizer steps done.
        skipped_steps: Steps left out because the loss or gradient of a worker was not finite.
    """

    def __init__(self, max_skipped_steps: int) -> None:
        self._most = max_skipped_steps
        self.go_on_from(0, 0)

    def go_on_from(self, updates: int, skipped_steps: int) -> None:
        self.updates, self.skipped_steps, self._in_a_row = updates, skipped_steps, 0

    @property
    def steps(self) -> int:
        """Done and left out."""
        return self.updates + self.skipped_steps

    def take(self, outcome: Outcome) -> bool:
        """Count a step; whether it was done. Waits for the device to get there.

        Raises:
            NonFinite: When it was one too many in a row; on all workers, which call alike.
        """
        if not outcome.left_out():
            self.updates += 1
            self._in_a_row = 0
            return True
        self.skipped_steps += 1
        self._in_a_row += 1
        if self._in_a_row >= self._most:
            raise NonFinite(self._describe(outcome))
        return False

    def _describe(self, outcome: Outcome) -> str:
        finite = bool(outcome.own.isfinite())
        report = (group.rank(), outcome.loss.item(), finite, outcome.indices)
        workers = [
            f"worker {rank}: loss {value:g}"
            + ("" if fine else f", samples {', '.join(map(str, samples))}")
            for rank, value, fine, samples in group.all_gather(report)
        ]
        return (
            f"{self._in_a_row} steps in a row had a loss or gradient that is not finite; "
            "in the last one " + "; ".join(workers) + ". A lower learning rate, grad_clip or fp32 "
            "may help; if it is always the same samples, look at them (convnextv2 data sample)"
        )
