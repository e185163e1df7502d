"""The training engine: what a loop needs from sharded training, and DeepSpeed behind it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cluster import group
from cluster.checkpoint import CheckpointError
from cluster.topology import Topology

Precision = Literal["fp32", "bf16"]
TAG = "deepspeed"


class Engine(Protocol):
    """Trains a module whose forward takes a batch and returns `.loss` and `.metrics`."""

    device: torch.device

    def train_step(self, batches: Iterable[Any], learning_rate: float) -> dict[str, Tensor]:
        """One optimizer step over the micro batches; mean metrics of this worker, detached."""

    def save(self, directory: Path) -> None:
        """Write this worker's state below `directory` (all workers call)."""

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote (all workers call, as many as saved)."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Sharding and precision: ZeRO stage 0-3, fp32 or bf16 (with fp32 masters), clipping."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Precision = "fp32"
    grad_clip: float = 0.0


def deepspeed_config(settings: EngineSettings, topology: Topology) -> dict[str, Any]:
    """The DeepSpeed configuration for the settings; the only place that spells its keys."""
    return {
        "train_batch_size": topology.global_batch_size,
        "train_micro_batch_size_per_gpu": topology.micro_batch_size,
        "gradient_accumulation_steps": topology.accumulation,
        "gradient_clipping": settings.grad_clip,
        "zero_optimization": {
            "stage": settings.zero_stage,
            # Stage 1 keeps whole gradients anyway; copying each into a buffer costs 4% of a step.
            "contiguous_gradients": settings.zero_stage > 1,
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.precision == "bf16"},
        "steps_per_print": 1 << 62,
        "wall_clock_breakdown": False,
    }


class DeepSpeedEngine:
    """`Engine` on DeepSpeed ZeRO; uses the process group that is already there.

    Args:
        module: The task; its forward takes one micro batch.
        groups: Optimizer groups with `lr_scale` each (see `train_step`).
        betas: AdamW betas.
        settings: Sharding and precision.
        topology: Batch arithmetic; its world size must be the group's.
        device: Where this worker computes.
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
    ) -> None:
        if device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # On CPUs DeepSpeed would compile an operation on every node for a collective that only
        # inference uses, and a killed worker would leave its 69 MB buffer in /dev/shm.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.device = device
        optimizer = torch.optim.AdamW(list(groups), lr=0.0, betas=betas)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimizer,
            config=deepspeed_config(settings, topology),
        )

    def train_step(self, batches: Iterable[Any], learning_rate: float) -> dict[str, Tensor]:
        for settings in self._optimizer.param_groups:
            settings["lr"] = learning_rate * settings["lr_scale"]
        totals: dict[str, Tensor] = {}
        count = 0
        for batch in batches:
            out = self._engine(batch)
            self._engine.backward(out.loss)
            self._engine.step()
            count += 1
            for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
                totals[name] = totals[name] + value if name in totals else value
        return {name: total / count for name, total in totals.items()}

    def save(self, directory: Path) -> None:
        writes = (self._engine.checkpoint_engine, "save"), (self._engine, "_copy_recovery_script")
        with _failures_held_back(*writes):
            self._engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        path = None
        if (directory / TAG).is_dir():
            path, _ = self._engine.load_checkpoint(str(directory), tag=TAG)
        if path is None:
            # DeepSpeed only warns, and training would silently start from scratch.
            raise CheckpointError(f"DeepSpeed found nothing to load in {directory / TAG}")


@contextmanager
def _failures_held_back(*methods: tuple[Any, str]) -> Iterator[None]:
    """Let the methods fail without raising; the first failure is raised at the end.

    DeepSpeed's workers meet at barriers while they save: one that raises (its disk is full) would
    leave the others waiting there until the process group times out.
    """
    failures: list[Exception] = []

    def patient(method: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                failures.append(error)

        return attempt

    for owner, name in methods:
        setattr(owner, name, patient(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in methods:
            delattr(owner, name)
    if failures:
        raise failures[0]


def fp32_weights(directory: Path) -> dict[str, Tensor]:
    """Full fp32 weights of the module from what `DeepSpeedEngine.save` wrote; needs no group."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if any((directory / TAG).glob("*_optim_states.pt")):
        state = get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=TAG)
    else:
        # ZeRO-0 keeps whole weights in one file, written by ourselves just before.
        path = directory / TAG / "mp_rank_00_model_states.pt"
        state = torch.load(path, map_location="cpu", weights_only=False)["module"]
    return {name: value.detach().clone().float() for name, value in state.items()}


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
