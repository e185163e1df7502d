"""The training engine: what a loop needs from sharded training, and DeepSpeed behind it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster import group
from cluster.batch_layout import BatchLayout
from cluster.checkpoint.fragment_files import StateFiles
from cluster.checkpoint.fragments import EMA, StateFragment
from cluster.checkpoint.store import CheckpointError
from cluster.engine.adamw import LayerwiseAdamW
from cluster.engine.cuda_graph import GraphedForward
from cluster.engine.deepspeed_import import import_deepspeed
from cluster.engine.divergence import check_replicas
from cluster.engine.outcome import Outcome, StepCounts
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import deepspeed_config
from cluster.engine.zero_partitions import partition_of, reduce_together
from cluster.placement import give_back_freed_memory
from cluster.workers import current


class DeepSpeedEngine:
    """Trains a module whose forward takes a batch and returns `.loss` and `.metrics`.

    By DeepSpeed's ZeRO, in the process group that is already there.

    Args:
        module: The task; its forward takes one micro batch.
        groups: Optimizer groups with `lr_scale` each (see `train_step`).
        betas: AdamW betas.
        settings: Sharding, precision and the rest.
        batch_layout: Batch arithmetic; its world size must be the group's.
        device: Where this worker computes.
        identify: Sample indices of a micro batch, for messages.
        left_out: Called with the number of a step, from 1, that is left out, when the host learns
            of it, on every worker.
        watch: Called likewise with the number of a step that is done, and its loss, the mean over
            workers.

    The host learns a step late whether a step was left out (`cluster.engine.outcome`). Whatever
    depends on it (fragments, counters, the average) waits for that: all workers read those alike.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        *,
        betas: tuple[float, float],
        settings: EngineSettings,
        batch_layout: BatchLayout,
        device: torch.device,
        identify: Callable[[Any], list[int]] = lambda batch: [],
        left_out: Callable[[int, Outcome], None] = lambda step, outcome: None,
        watch: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        deepspeed = import_deepspeed()
        self.device, self.module = device, module
        self._identify, self._tell_left_out, self._watch = identify, left_out, watch
        self._grad_clip = settings.grad_clip
        self._adamw: LayerwiseAdamW | None = None
        module.to(device)
        if settings.zero.offload_optimizer == "none":
            self._adamw = optimizer = LayerwiseAdamW(groups, betas=betas)
            scales = {name: optimizer.scales.get(p, 1.0) for name, p in module.named_parameters()}
        else:
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(list(groups), lr=0.0, betas=betas)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(
                settings.zero, settings.precision, settings.grad_clip, batch_layout
            ),
        )
        self._partition = partition_of(module, self._optimizer)
        if settings.zero.stage == 0:
            self._engine.allreduce_and_copy = reduce_together(
                self._engine.allreduce_bucket, self._engine.unflatten
            )
        if isinstance(optimizer, LayerwiseAdamW):
            optimizer.stretches = self._partition.stretches(scales)
        if settings.cuda_graph:  # From here on DeepSpeed leaves parameters where they are.
            module.forward = GraphedForward(module)  # type: ignore[arg-type]
        if device.type == "cpu":
            give_back_freed_memory()
        self._fragments = self._partition.fragments()
        self._has_replicas = settings.zero.stage < 3
        self._counts = StepCounts(settings.max_skipped_steps)
        self._unsettled: Outcome | None = None
        self._worker = current.worker()
        self.stop_agreed = False
        self._ema = None
        if settings.ema_decay is not None:
            self._ema = EMA(self._fragments, settings.ema_decay)

    @property
    def fragments(self) -> list[StateFragment]:
        """What this worker keeps of the parameters and of their optimizer state."""
        self.settle()
        return self._fragments

    @property
    def updates(self) -> int:
        """Optimizer steps done."""
        self.settle()
        return self._counts.updates

    @property
    def skipped_steps(self) -> int:
        """Steps left out because the loss or gradient of a worker was not finite, or on purpose."""
        self.settle()
        return self._counts.skipped_steps

    def train_step(self, batches: Iterable[Any], learning_rate: float) -> dict[str, Tensor]:
        """One optimizer step over the micro batches; mean metrics of this worker, detached."""
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
            self._worker.beacon.passed()
            self._engine.backward(out.loss)
            self._worker.beacon.passed()
            indices += self._identify(batch)
            count += 1
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                totals[name] = totals[name] + value if name in totals else value
        metrics = {name: total / count for name, total in totals.items()}
        metrics["grad_norm"] = self._step(metrics["loss"], indices)
        return metrics

    def _step(self, loss: Tensor, indices: list[int]) -> Tensor:
        """Step if loss and gradients are finite on all workers, else on none; the gradient norm.

        Three scalars go round: what is not finite on one worker makes the sum so on all of them,
        and all learn at the same step that one of them was asked to stop, and the mean loss.
        """
        own = self._partition.squared_gradient_norm() + 0 * loss.float()
        asked = own.new_full((), float(self._worker.beacon.stop_requested))
        sums = torch.stack([own, asked, loss.to(own.dtype)])
        if group.world_size() > 1:
            torch.distributed.all_reduce(sums)
        # The device has this step to compute meanwhile, and the weights are still the last one's.
        self.settle()
        outcome = Outcome.of(sums, own, loss, indices)
        norm = sums[0].sqrt()
        if self._adamw is not None:
            self._adamw.found_inf = outcome.found_inf
            if self._grad_clip:
                # As PyTorch's clip_grad_norm_ has it.
                self._adamw.grad_scale = ((norm + 1e-6) / self._grad_clip).clamp(min=1)
        elif outcome.left_out():
            self._partition.skip_next_step()
        self._engine.step()
        self._unsettled = outcome
        return norm

    def settle(self) -> None:
        """Count the last step, and take its weights into the average, unless it was left out.

        Raises:
            NonFinite: When it was one too many in a row; on all workers, which call alike. What
                `watch` raises passes through.
        """
        outcome, self._unsettled = self._unsettled, None
        if outcome is None:
            return
        if outcome.left_out():
            self._tell_left_out(self._counts.steps + 1, outcome)
        done = self._counts.take(outcome)
        if done and self._ema is not None:
            self._ema.update()
        self.stop_agreed |= outcome.stops()
        if done:
            self._watch(self._counts.steps, outcome.mean_loss())

    def pass_over(self, steps: int) -> None:
        """Count steps that are left out on purpose, without a pass."""
        self.settle()
        self._counts.pass_over(steps)

    def check_replicas(self, step: int) -> None:
        """Have all workers, who all call, compare their weights; in ZeRO-3 nobody has another's.

        Raises:
            Diverged: On every worker, naming those that differ.
        """
        if self._has_replicas and group.world_size() > 1:
            check_replicas(self.module.parameters(), step)

    def restore(self, directory: Path, notes: dict[str, Any]) -> None:
        """Take fragments and counters of a checkpoint over, whatever had cut them up.

        All workers call.

        Raises:
            CheckpointError: When it does not hold all that this engine keeps.
        """
        parameters = {name for name, _ in self.module.named_parameters()}
        try:
            StateFiles(directory).fill(self._fragments, parameters)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self._unsettled = None
        self._counts.go_on_from(notes["updates"], notes["skipped_steps"])
        if self._ema is not None:
            self._ema.updates = notes["updates"]
        self._partition.refresh(notes["updates"])

    @contextmanager
    def evaluating(self, *, ema: bool = False) -> Iterator[Callable[[Any], Any]]:
        """The module in evaluation mode, to be called without gradients by all workers alike.

        On its weights or, with `ema`, on their moving average.
        """
        self.settle()
        self._engine.eval()
        if ema:
            self._swap()
        try:
            with torch.no_grad():
                yield self._engine
        finally:
            if ema:
                self._swap()
            self._engine.train()

    def _swap(self) -> None:
        if self._ema is None:
            raise ValueError("no moving average is kept; set ema_decay")
        self._ema.swap()
        self._partition.refresh(None)
