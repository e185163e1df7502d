"""Runs a skipped step again on the same samples, and checks every module for non-finite values."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.checkpoint.fragment_files import StateFiles
from cluster.checkpoint.fragments import WEIGHT
from cluster.checkpoint.store import CheckpointError, step_of, steps, verify
from convnextv2.recipe.optimizer import parameter_groups
from convnextv2.tasks.batch import on_device
from pipelines.training.anomalies.nonfinite import LeftOut
from pipelines.training.build import build_loader, group_rule, seed_step
from pipelines.training.job import TrainJob


@dataclass
class Replayed:
    """The result of a replay. Names are "" where every value is finite.

    Attributes:
        weights_of: Step of the checkpoint that the weights are from; 0 for the initial ones.
        losses: The loss of each micro batch.
        gradient_norms: The norm of each parameter group, as text.
        in_weights: The first parameter that holds a non-finite value.
        in_forward: The first module, in the order of the forward pass, with such an output.
        in_backward: The first parameter, in the order of the backward pass, with such a gradient.
    """

    weights_of: int
    losses: list[float] = field(default_factory=list)
    gradient_norms: dict[str, float] = field(default_factory=dict)
    in_weights: str = ""
    in_forward: str = ""
    in_backward: str = ""


def replay(job: TrainJob, left_out: LeftOut) -> Replayed:
    """Repeat the passes of a step with the weights of the newest good checkpoint before it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision(job.recipe.matmul_precision)
    seed_step(job.seed, 0, 0)
    task = job.build_task(job)
    found = Replayed(_take_weights(task, job, left_out.step))
    task.to(device, torch.bfloat16 if job.recipe.dtype == "bf16" else torch.float32)
    found.in_weights = next((n for n, p in task.named_parameters() if not _is_finite(p)), "")
    samples = [np.array(each, np.uint64) for each in left_out.micro_batches]
    batches = on_device(build_loader(job).batches(iter(samples), left_out.epoch), device)
    seed_step(job.seed, left_out.step - 1, left_out.rank)
    with watched(task, found), closing(batches):
        for batch in batches:
            loss = task(batch).loss
            found.losses.append(loss.item())
            (loss / len(samples)).backward()
    for group in parameter_groups(task, group_rule(job.recipe), task.depths):  # type: ignore[arg-type]
        gradients = [p.grad.float() for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        words = f"weight decay {group['weight_decay']:g}, rate x {group['lr_scale']:g}"
        found.gradient_norms[words] = norm
    return found


def _take_weights(task: nn.Module, job: TrainJob, step: int) -> int:
    """Load the newest good checkpoint before `step`; returns its step, 0 if there is none."""
    root = job.directory / "checkpoints"
    for path in reversed([path for path in steps(root) if step_of(path) < step]):
        try:
            verify(path)
        except CheckpointError:
            continue
        files = StateFiles(path)
        with torch.no_grad():
            for name, parameter in task.named_parameters():
                parameter.copy_(files.whole(WEIGHT, name))
        return step_of(path)
    return 0


@contextmanager
def watched(task: nn.Module, found: Replayed) -> Iterator[None]:
    """Record where the first non-finite value appears."""

    def forward(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            # Hooks of inner modules run before those of outer ones, so the first hit is the
            # innermost module.
            if not found.in_forward and not all(map(_is_finite, _tensors(output))):
                found.in_forward = name or type(module).__name__

        return look

    def backward(name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if not found.in_backward and not _is_finite(parameter.grad):
                found.in_backward = name

        return look

    with ExitStack() as stack:
        for name, module in task.named_modules():
            stack.callback(module.register_forward_hook(forward(name)).remove)
        for name, parameter in task.named_parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(backward(name))
                stack.callback(hook.remove)
        yield


def _tensors(output: Any) -> Iterator[Tensor]:
    if torch.is_tensor(output):
        yield output
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors(each)


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(tensor.isfinite().all())
