"""The training engine: what a loop needs from sharded training, and DeepSpeed behind it."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cluster import group
from cluster.adamw import LayerwiseAdamW
from cluster.checkpoint import CheckpointError
from cluster.partitions import PARTITIONS, Partition
from cluster.placement import give_back_freed_memory
from cluster.state_files import StateFiles
from cluster.states import Average, Piece
from cluster.topology import Topology
from cluster.zero import Precision, ZeroSettings, deepspeed_config


class NonFinite(RuntimeError):
    """Too many steps in a row had a loss or gradient that is NaN or infinite."""


class Engine(Protocol):
    """Trains a module whose forward takes a batch and returns `.loss` and `.metrics`."""

    device: torch.device
    pieces: list[Piece]
    updates: int
    skipped_steps: int

    def train_step(self, batches: Iterable[Any], learning_rate: float) -> dict[str, Tensor]:
        """One optimizer step over the micro batches; mean metrics of this worker, detached."""

    def restore(self, directory: Path, notes: dict[str, Any]) -> None:
        """Take pieces and counters of a checkpoint over (all workers call; any number saved)."""

    def evaluating(self, *, averaged: bool = False) -> Any:
        """A context with the module to evaluate, on its weights or their moving average."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sharding, precision (bf16 keeps fp32 masters), clipping, averaging.

    `ema_decay` None keeps no moving average. After `max_skipped_steps` steps in a row whose loss
    or gradient is not finite training stops.
    """

    zero: ZeroSettings = field(default_factory=ZeroSettings)
    precision: Precision = "fp32"
    grad_clip: float = 0.0
    ema_decay: float | None = None
    max_skipped_steps: int = 10


class DeepSpeedEngine:
    """`Engine` on DeepSpeed ZeRO; uses the process group that is already there.

    Args:
        module: The task; its forward takes one micro batch.
        groups: Optimizer groups with `lr_scale` each (see `train_step`).
        betas: AdamW betas.
        settings: Sharding, precision and the rest.
        topology: Batch arithmetic; its world size must be the group's.
        device: Where this worker computes.
        identify: Sample indices of a micro batch, for messages.

    Attributes:
        pieces: What this worker keeps of the parameters and of their optimizer state.
        updates: Optimizer steps done.
        skipped_steps: Steps left out because the loss or gradient of a worker was not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float],
        settings: EngineSettings,
        topology: Topology,
        device: torch.device,
        identify: Callable[[Any], list[int]] = lambda batch: [],
    ) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # On CPUs DeepSpeed would compile an operation on every node for a collective that only
        # inference uses, and a killed worker would leave its 69 MB buffer in /dev/shm.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.device, self._module, self._identify = device, module, identify
        self._settings = settings
        module.to(device)
        if settings.zero.offload_optimizer == "none":
            optimizer = LayerwiseAdamW(groups, betas=betas)
            scales = {name: optimizer.scales.get(p, 1.0) for name, p in module.named_parameters()}
        else:
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(list(groups), lr=0.0, betas=betas)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(
                settings.zero, settings.precision, settings.grad_clip, topology
            ),
        )
        self._partition: Partition = PARTITIONS[type(self._optimizer).__name__](
            module, self._optimizer
        )
        if isinstance(optimizer, LayerwiseAdamW):
            optimizer.stretches = self._partition.stretches(scales)
        if device.type == "cpu":
            give_back_freed_memory()
        self.pieces = self._partition.pieces()
        self.updates = self.skipped_steps = self._skipped_in_a_row = 0
        self._average = None
        if settings.ema_decay is not None:
            self._average = Average(self.pieces, settings.ema_decay)

    def train_step(self, batches: Iterable[Any], learning_rate: float) -> dict[str, Tensor]:
        for settings in self._optimizer.param_groups:
            # Offloaded groups have their layers' scales; the others' optimizer knows them.
            settings["lr"] = learning_rate * settings.get("lr_scale", 1.0)
        totals: dict[str, Tensor] = {}
        indices: list[int] = []
        count = 0
        for batch in batches:
            if count:
                self._engine.step()  # Not a boundary yet: DeepSpeed only counts.
            out = self._engine(batch)
            self._engine.backward(out.loss)
            indices += self._identify(batch)
            count += 1
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                totals[name] = totals[name] + value if name in totals else value
        metrics = {name: total / count for name, total in totals.items()}
        metrics["grad_norm"] = self._step(metrics["loss"], indices)
        return metrics

    def _step(self, loss: Tensor, indices: list[int]) -> Tensor:
        """Step if loss and gradients are finite on all workers, else on none; the gradient norm.

        One scalar goes round: what is not finite on one worker makes the sum so on all of them.
        """
        squares = self._partition.squared_gradient_norm()
        total = squares + 0 * loss.float()
        if group.world_size() > 1:
            torch.distributed.all_reduce(total)
        finite = math.isfinite(total.item())
        if not finite:
            self._partition.skip_next_step()
        self._engine.step()
        if finite:
            self.updates += 1
            self._skipped_in_a_row = 0
            if self._average is not None:
                self._average.update()
        else:
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= self._settings.max_skipped_steps:
                mine_is_finite = math.isfinite(float(squares + 0 * loss.float()))
                raise NonFinite(self._describe(loss, indices, mine_is_finite))
        return total.sqrt()

    def _describe(self, loss: Tensor, indices: list[int], finite: bool) -> str:
        report = (group.rank(), loss.item(), finite, indices)
        words = [
            f"worker {rank}: loss {value:g}"
            + ("" if fine else f", samples {', '.join(map(str, samples))}")
            for rank, value, fine, samples in group.gather(report)
        ]
        return (
            f"{self._skipped_in_a_row} steps in a row had a loss or gradient that is not finite; "
            "in the last one " + "; ".join(words) + ". A lower learning rate, grad_clip or fp32 "
            "may help; if it is always the same samples, look at them (convnextv2 data sample)"
        )

    def restore(self, directory: Path, notes: dict[str, Any]) -> None:
        """Take pieces and counters of a checkpoint over, whatever had cut them up.

        Raises:
            CheckpointError: When it does not hold all that this engine keeps.
        """
        try:
            files = StateFiles(directory)
            self._take(files)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self.updates, self.skipped_steps = notes["updates"], notes["skipped_steps"]
        if self._average is not None:
            self._average.updates = self.updates
        self._partition.refresh(self.updates)

    @torch.no_grad()
    def _take(self, files: StateFiles) -> None:
        mine = {name for name, _ in self._module.named_parameters()}
        for names, words in ((mine - set(files), "lacks"), (set(files) - mine, "has")):
            if names:
                raise ValueError(
                    f"{files.directory} is not whole, or of another model: it {words} "
                    f"{len(names)} parameters, such as {min(names)}"
                )
        for piece in self.pieces:
            if files.shapes[piece.name] != piece.shape:
                raise ValueError(
                    f"{files.directory}: {piece.name} has shape {files.shapes[piece.name]}, the "
                    f"model's is {piece.shape}"
                )
            for kind, tensor in piece.tensors.items():
                tensor.copy_(files.read(kind, piece.name, piece.start, piece.numel))

    @contextmanager
    def evaluating(self, *, averaged: bool = False) -> Iterator[Callable[[Any], Any]]:
        """The module in evaluation mode, to be called without gradients by all workers alike."""
        self._engine.eval()
        if averaged:
            self._swap()
        try:
            with torch.no_grad():
                yield self._engine
        finally:
            if averaged:
                self._swap()
            self._engine.train()

    def _swap(self) -> None:
        if self._average is None:
            raise ValueError("no moving average is kept; set ema_decay")
        self._average.swap()
        self._partition.refresh(None)


def worker_device() -> torch.device:
    """The accelerator given to this worker, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def mean_over_workers(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Average scalars over all workers in one all-reduce; the same answer everywhere."""
    names = sorted(metrics)
    stacked = torch.stack([metrics[name].float() for name in names])
    if group.world_size() > 1:
        torch.distributed.all_reduce(stacked)
        stacked /= group.world_size()
    return dict(zip(names, stacked.tolist(), strict=True))
