"""Checks that a stage can train on a worker's GPU before the model is moved there."""

import time
from collections.abc import Iterator

import torch

from cluster.batch_layout import micro_batch_sizes
from cluster.gpu import GIB, taken_by_others
from cluster.workers.current import Unusable
from convnextv2.kernels.build import SWITCH, turned_off
from convnextv2.kernels.gpu import triton_missing
from convnextv2.memory import Kernels
from pipelines.config import FinetuneConfig, PretrainConfig
from pipelines.training.data.transforms import image_size_of
from pipelines.training.job import TrainJob
from pipelines.training.memory import training_memory

MARGIN = 0.9
"""The share of the free memory that may be planned for: the formula errs by up to a tenth."""
ALL_STAGES = (0, 1, 2, 3)

RELEASE_SECONDS = 10.0
"""How long the memory of a worker that was killed may stay taken."""


class DoesNotFit(Unusable):
    """A stage cannot be trained on this GPU; the message says what would work."""


def check_gpu(job: TrainJob, device: torch.device) -> str:
    """Refuse a stage that cannot train here.

    Returns:
        A phrase on other processes that use this GPU, which may be slow then; "" for none.

    Raises:
        DoesNotFit: When Triton is missing, or the memory does not suffice.
    """
    if device.type == "cpu":
        return ""
    if not turned_off() and (why := triton_missing()):
        raise DoesNotFit(
            f"{why}; without its kernels a step takes several times as long and three times the "
            f"memory, and {SWITCH}=plain trains so"
        )
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        free, total = torch.cuda.mem_get_info(device)
        problem = memory_problem(job, free)
        # Others may be a worker of the group before, whose memory the driver still clears.
        if not problem or memory_problem(job, total) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    others = taken_by_others(free / GIB, total / GIB)
    if problem:
        raise DoesNotFit(f"{problem}; {others}" if others else problem)
    return others


def memory_problem(job: TrainJob, free: int) -> str:
    """A sentence on a micro batch that does not fit into `free` bytes; "" when it fits."""
    room = MARGIN * free
    needed = _needed(job, job.recipe)
    if needed <= room:
        return ""
    recipe = job.recipe
    fitting = " or ".join(_what_fits(job, room)) or "a larger GPU, or a smaller model.size,"
    return (
        f"micro_batch_size: {recipe.micro_batch_size} images of "
        f"{image_size_of(recipe, job.model)} px take about {needed / GIB:.1f} GiB with model.size "
        f"{job.model.size} in {recipe.dtype}, more than {MARGIN:.0%} of the {free / GIB:.1f} GiB "
        f"that are free on this worker's GPU; {fitting} would do"
    )


def _what_fits(job: TrainJob, room: float) -> Iterator[str]:
    """Settings that fit: a smaller micro batch, activation checkpointing, or both together."""
    recipe = job.recipe
    again = recipe.model_copy(update={"activation_checkpointing": ALL_STAGES})
    smaller = _largest(job, recipe, room)
    if smaller:
        yield str(smaller)
    if _needed(job, again) <= room:
        yield f"activation_checkpointing={list(ALL_STAGES)}"
    elif not smaller and (both := _largest(job, again, room)):
        yield f"{both} with activation_checkpointing={list(ALL_STAGES)}"


def _largest(job: TrainJob, recipe: PretrainConfig | FinetuneConfig, room: float) -> int:
    """The largest micro batch that fits and divides the global batch; 0 if there is none."""
    for size in micro_batch_sizes(recipe.global_batch_size, job.cluster.most_workers):
        if size < recipe.micro_batch_size:
            tried = recipe.model_copy(update={"micro_batch_size": size})
            if _needed(job, tried) <= room:
                return size
    return 0


def _needed(job: TrainJob, recipe: PretrainConfig | FinetuneConfig) -> float:
    kernels: Kernels = "plain" if turned_off() else "triton"
    return training_memory(job.model, recipe, job.cluster, kernels).total
