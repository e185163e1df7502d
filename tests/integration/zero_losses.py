"""Losses of a small FCMAE under every ZeRO stage, as JSON. Run in a process of its own."""

import json
import os
import sys

import torch
import torch.distributed as dist

from cluster.batch_layout import BatchLayout
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import ZeroSettings
from convnextv2.fcmae import FCMAE
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.pretrain import PretrainTask


def batches(step: int) -> list[Batch]:
    """Two micro batches of four images."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 255, (2, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    indices = torch.arange(8).view(2, 4) + 8 * step
    return [
        Batch(x, torch.zeros(4, dtype=torch.int64), i, 0)
        for x, i in zip(images, indices, strict=True)
    ]


def losses(stage: int) -> list[float]:
    torch.manual_seed(0)
    model = FCMAE.from_size("pocket", image_size=16, patch_size=8, stem_stride=1, decoder_dim=16)
    task = PretrainTask(model, seed=0)
    engine = DeepSpeedEngine(
        task,
        parameter_groups(task, GroupRule(weight_decay=0.05), task.depths),
        betas=(0.9, 0.95),
        settings=EngineSettings(zero=ZeroSettings(stage=stage)),  # type: ignore[arg-type]
        batch_layout=BatchLayout(8, 4, 1),
        device=torch.device("cpu"),
    )
    return [engine.train_step(batches(step), 1e-2)["loss"].item() for step in range(5)]


if __name__ == "__main__":
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    print(json.dumps([losses(stage) for stage in range(4)]))
