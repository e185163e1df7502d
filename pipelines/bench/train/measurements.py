"""The measurements of a worker, of FCMAE on images that are in memory already.

All workers of a group run the function whose name is given to `run_group`; it returns rows of
figures.
"""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from cluster import group
from cluster.batch_layout import BatchLayout
from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.retention import KeepPolicy
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.memory import model_states
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from cluster.placement import worker_device
from convnextv2.fcmae import FCMAE
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.bench.device import seconds_on
from pipelines.bench.turns import median_ratio, take_turns

BETAS = (0.9, 0.95)
RATE = 1e-4
WARM_UP = 3
MB = 1e6

Row = dict[str, float]


def here() -> torch.device:
    """The device of this worker, which follows from the backend of its group."""
    return worker_device(use_gpu=torch.distributed.get_backend() == "nccl")


def new_task(size: str, image_size: int) -> PretrainTask:
    torch.manual_seed(0)
    return PretrainTask(FCMAE.from_size(size, image_size=image_size), seed=0).to(here())


def new_batch(batch: int, image_size: int) -> Batch:
    images = torch.randint(0, 255, (batch, image_size, image_size, 3), dtype=torch.uint8)
    labels = torch.zeros(batch, dtype=torch.int64)
    return Batch(images, labels, torch.arange(batch), 0).to(here())


def new_engine(
    task: PretrainTask,
    batch: int,
    *,
    stage: int = 1,
    precision: Precision = "fp32",
    ema: bool = False,
    groups: list[Any] | None = None,
    accumulation: int = 1,
) -> DeepSpeedEngine:
    world = group.world_size()
    return DeepSpeedEngine(
        task,
        groups or parameter_groups(task, GroupRule(weight_decay=0.05), task.depths),
        betas=BETAS,
        settings=EngineSettings(
            zero=ZeroSettings.model_validate({"stage": stage}),
            precision=precision,
            ema_decay=0.9999 if ema else None,
        ),
        batch_layout=BatchLayout(batch * world * accumulation, batch, world),
        device=here(),
    )


def overhead(size: str, image_size: int, batch: int, stage: int, turns: int) -> list[Row]:
    """Seconds of a step of the engine and of a bare PyTorch loop, measured in turns."""
    images = new_batch(batch, image_size)
    engine = new_engine(new_task(size, image_size), batch, stage=stage)
    bare = new_task(size, image_size)
    rule = GroupRule(weight_decay=0.05)
    optimizer = torch.optim.AdamW(
        parameter_groups(bare, rule, bare.depths), lr=RATE, betas=BETAS, fused=True
    )

    def bare_step() -> None:
        bare(images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    contenders = {
        "engine": partial(seconds_on, here(), lambda: engine.train_step([images], RATE)),
        "bare": partial(seconds_on, here(), bare_step),
    }
    found = take_turns(contenders, turns, WARM_UP)
    medians = {name: statistics.median(own) for name, own in found.items()}
    return [{**medians, "ratio": median_ratio(found["engine"], found["bare"])}]


def steps(
    size: str, image_size: int, batch: int, stage: int, accumulation: int, turns: int
) -> list[Row]:
    """Seconds of a step of `accumulation` micro batches."""
    task = new_task(size, image_size)
    engine = new_engine(task, batch, stage=stage, accumulation=accumulation)
    images = [new_batch(batch, image_size)] * accumulation
    step = partial(seconds_on, here(), lambda: engine.train_step(images, RATE))
    found = take_turns({"step": step}, turns, WARM_UP)
    return [{"seconds": statistics.median(found["step"])}]


def grouping(size: str, image_size: int, batch: int, turns: int) -> list[Row]:
    """Seconds of a step without layer decay, with it, and with a parameter group for every layer,
    as a recipe's groups would be in plain DeepSpeed; measured in turns.
    """
    images = new_batch(batch, image_size)
    engines: list[DeepSpeedEngine] = []
    rows: list[Row] = []
    for decay, own_groups in ((1.0, False), (0.9, False), (0.9, True)):
        task = new_task(size, image_size)
        rule = GroupRule(weight_decay=0.05, layer_decay=decay)
        groups = parameter_groups(task, rule, task.depths)
        if own_groups:
            # Groups with different weight decays are not merged.
            groups = [{**each, "weight_decay": 0.05 + 1e-9 * n} for n, each in enumerate(groups)]
        engines.append(new_engine(task, batch, groups=groups))
        rows.append({"layer_decay": decay, "groups": len({g["weight_decay"] for g in groups})})

    steps = {
        str(number): partial(seconds_on, here(), partial(engine.train_step, [images], RATE))
        for number, engine in enumerate(engines)
    }
    found = list(take_turns(steps, turns, WARM_UP).values())
    return [
        {**row, "seconds": statistics.median(own), "ratio": median_ratio(own, found[0])}
        for row, own in zip(rows, found, strict=True)
    ]


def saving(size: str, image_size: int, batch: int, turns: int) -> list[Row]:
    """Seconds that a checkpoint blocks the loop, written synchronously and in the background."""
    engine = new_engine(new_task(size, image_size), batch, ema=True)
    images = new_batch(batch, image_size)
    engine.train_step([images], RATE)
    notes = {"updates": engine.updates, "skipped_steps": 0, "metrics": {}}
    blocked: dict[bool, list[float]] = {True: [], False: []}
    written = beside = size_mb = 0.0
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        savers = {
            behind: Saver(Path(folder) / str(behind), KeepPolicy(), asynchronous=behind)
            for behind in blocked
        }
        for number in range(turns + 1):
            for behind, saver in savers.items():
                begin = time.perf_counter()
                saved = saver.save(number, engine.fragments, notes)
                if number:  # The first one allocates host memory.
                    blocked[behind].append(time.perf_counter() - begin)
                if behind:
                    beside = seconds_on(here(), lambda: engine.train_step([images], RATE))
                    saved = saver.wait()
                    written = saved.seconds if saved else written
                size_mb = saved.checkpoint.bytes / MB if saved else size_mb
    at_once, behind_it = (statistics.median(blocked[each]) for each in (False, True))
    row = {
        "megabytes": size_mb,
        "at_once": at_once,
        "behind": behind_it,
        "times_shorter": at_once / behind_it,
        "written": written,
        "step_beside": beside,
    }
    return [row]


def memory(
    size: str, image_size: int, batch: int, stage: int, precision: Precision, ema: bool
) -> list[Row]:
    """MB of this process (on a GPU, of PyTorch's allocator) above its start, after two steps; and
    by formula.
    """
    new_engine(new_task("pocket", 64), 1)  # DeepSpeed's own memory is not the model's.
    before = _resident()
    task = new_task(size, image_size)
    parameters = sum(parameter.numel() for parameter in task.parameters())
    engine = new_engine(task, batch, stage=stage, precision=precision, ema=ema)
    images = new_batch(batch, image_size)
    losses: list[Tensor] = []
    begin = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        losses.append(engine.train_step([images], RATE)["loss"])
    formula = model_states(
        parameters,
        stage=stage,
        world_size=group.world_size(),
        precision=precision,
        ema=ema,
    )
    row = {
        "parameters": parameters,
        "formula": formula.total / MB,
        "measured": (_resident() - before) / MB,
        "peak": _peak() / MB,
        "seconds": time.perf_counter() - begin,
        "loss": losses[-1].item(),
    }
    return [row]


def _resident() -> int:
    if here().type == "cuda":
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    if here().type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
