"""Whether a step was skipped: the device knows at once, the host one step later. And counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster import group


class NonFinite(RuntimeError):
    """Too many consecutive steps had a loss or gradient that is NaN or infinite."""


@dataclass(frozen=True)
class Outcome:
    """Whether the loss or gradients of a step were finite, as the device computes it.

    If the host read this at once, it would wait for the device to finish the step, and the device
    would then idle until the host launches the next one. So the optimizer reads `found_inf` on the
    device, and the host reads it while the next step is running.

    Attributes:
        found_inf: () fp32 on the device; 1 if all workers must skip the step.
        own: () this worker's contribution; not finite if this worker caused the skip.
        loss: () the loss of this worker.
        indices: The indices of this worker's samples.
    """

    found_inf: Tensor
    own: Tensor
    loss: Tensor
    indices: list[int]
    _on_host: Tensor
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, sums: Tensor, own: Tensor, loss: Tensor, indices: list[int]) -> "Outcome":
        """Judge by the `sums` (3,) over all workers: of `own`, which is finite only if each of them
        is, of those that were asked to stop, and of the losses.
        """
        found_inf = (~sums[0].isfinite()).float()
        # With non_blocking, PyTorch allocates page-locked memory for the copy.
        on_host = torch.stack([found_inf, *sums[1:].float()]).to("cpu", non_blocking=True)
        arrived = None
        if found_inf.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        return cls(found_inf, own, loss, indices, on_host, arrived)

    def left_out(self) -> bool:
        """Whether the step was skipped; waits until the device has computed it."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return bool(self._on_host[0])

    def stops(self) -> bool:
        """Whether any worker was asked to stop; valid only after `left_out` has been read."""
        return bool(self._on_host[1])

    def mean_loss(self) -> float:
        """The mean loss over all workers, the same on each; valid as `stops` is."""
        return self._on_host[2].item() / group.world_size()


class StepCounts:
    """Steps done and skipped, the same on all workers.

    Args:
        max_skipped_steps: This many skipped steps in a row are an error.

    Attributes:
        updates: Optimizer steps done.
        skipped_steps: Steps skipped because the loss or gradient of a worker was not finite, and
            those that were passed over.
    """

    def __init__(self, max_skipped_steps: int) -> None:
        self._most = max_skipped_steps
        self.go_on_from(0, 0)

    def go_on_from(self, updates: int, skipped_steps: int) -> None:
        self.updates, self.skipped_steps, self._in_a_row = updates, skipped_steps, 0

    def pass_over(self, steps: int) -> None:
        """Count steps that were not tried."""
        self.skipped_steps += steps

    @property
    def steps(self) -> int:
        """Steps done and skipped."""
        return self.updates + self.skipped_steps

    def take(self, outcome: Outcome) -> bool:
        """Count a step and return whether it was done; waits until the device has computed it.

        Raises:
            NonFinite: On all workers, when too many steps in a row were skipped.
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
