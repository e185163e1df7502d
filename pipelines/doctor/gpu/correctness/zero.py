"""Part `zero`: the training engine in every ZeRO stage with NCCL, saved and restored."""

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from convnextv2.fcmae import FCMAE
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from pipelines.doctor.gpu.parts import Row, Setting, Skipped
from pipelines.doctor.gpu.timing import seconds_of
from pipelines.doctor.gpu.workload import Pretraining, random_pixels

STEPS, RATE = 5, 1e-3
BATCH, SIDE = 16, 64
BARS = {"fp32": 1e-5, "bf16": 5e-3}
"""Largest relative difference of a loss between stages."""


def zero(setting: Setting) -> Iterator[Row]:
    """Compare the losses of all stages and precisions, and the loss after a restore."""
    why = deepspeed_missing()
    if why:
        raise Skipped(why)
    device = torch.device(setting.device)
    pixels = random_pixels(BATCH, SIDE, device)
    for precision, bar in BARS.items():
        first: list[float] = []
        # Stage 0 in bf16 is refused where GPUs are configured.
        stages = (1, 2, 3, 0) if precision == "fp32" else (1, 2, 3)
        for stage in stages[:1] if setting.quick else stages:
            engine = build_engine(stage, precision, "pocket", SIDE, BATCH, device)
            losses = [one_step(engine, pixels) for _ in range(STEPS)]
            first = first or losses
            spread = max(abs(a - b) / b for a, b in zip(losses, first, strict=True))
            problem = "" if spread < bar else f"losses differ from stage 1's by more than {bar:g}"
            problem = problem or round_trip(engine, stage, precision, pixels)
            milliseconds = 1e3 * seconds_of(
                lambda e=engine: e.train_step([pixels, pixels], RATE),  # type: ignore[misc]
                device,
                rounds=1 if setting.quick else 3,
                calls=1 if setting.quick else 10,
                warm=1,
            )
            figures = {"last loss": losses[-1], "spread": spread, "ms": milliseconds}
            yield Row(f"stage {stage} {precision}", {**figures}, problem)


def deepspeed_missing() -> str:
    """A sentence when DeepSpeed, or something it needs, is missing; else ""."""
    missing = [name for name in ("deepspeed", "pydantic") if find_spec(name) is None]
    return f"needs {' and '.join(missing)}: pip install deepspeed" if missing else ""


def build_engine(
    stage: int,
    precision: str,
    size: str,
    side: int,
    batch: int,
    device: torch.device,
    *,
    cuda_graph: bool = False,
) -> Any:
    """The training engine as the pipelines build it: one worker, two micro batches a step."""
    from cluster.batch_layout import BatchLayout
    from cluster.engine.deepspeed_engine import DeepSpeedEngine
    from cluster.engine.settings import EngineSettings
    from cluster.engine.zero_config import ZeroSettings

    join_group(device)
    torch.manual_seed(0)
    task = Pretraining(FCMAE.from_size(size, image_size=side))
    settings = EngineSettings(
        zero=ZeroSettings.model_validate({"stage": stage}),
        precision="bf16" if precision == "bf16" else "fp32",
        ema_decay=0.999,
        cuda_graph=cuda_graph,
    )
    return DeepSpeedEngine(
        task,
        parameter_groups(task, GroupRule(weight_decay=0.05), task.depths),
        betas=(0.9, 0.95),
        settings=settings,
        batch_layout=BatchLayout(2 * batch, batch, 1),
        device=device,
    )


def join_group(device: torch.device) -> None:
    """Make this process a process group of its own, with NCCL on a GPU."""
    if torch.distributed.is_initialized():
        return
    # If one of these is missing, DeepSpeed asks MPI, even though the group exists already.
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


def one_step(engine: Any, pixels: torch.Tensor) -> float:
    return float(engine.train_step([pixels, pixels], RATE)["loss"])


def round_trip(engine: Any, stage: int, precision: str, pixels: torch.Tensor) -> str:
    """Save and do a step, then restore into a new engine and repeat it: the losses must match.

    Returns:
        A sentence when they do not; else "".
    """
    from cluster.checkpoint.async_saver import Saver
    from cluster.checkpoint.retention import KeepPolicy
    from cluster.checkpoint.store import latest_good

    with tempfile.TemporaryDirectory(prefix="convnextv2-gpu-check-") as folder:
        saver = Saver(Path(folder), KeepPolicy())
        notes = {"updates": engine.updates, "skipped_steps": engine.skipped_steps}
        saver.save(STEPS, engine.fragments, notes)
        straight = one_step(engine, pixels)
        saver.wait()
        found = latest_good(Path(folder)).found
        assert found is not None
        again = build_engine(stage, precision, "pocket", SIDE, BATCH, pixels.device)
        again.restore(found.path, found.notes)
        resumed = one_step(again, pixels)
    return "" if resumed == straight else f"after a restore the loss is {resumed}, not {straight}"
