"""The run of plans that name none: a tiny model on images made here, seconds on a laptop."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.config import PipelineConfig
from pipelines.presets import load_preset

CLASSES = ("disc", "grating", "ramp")
SIDE = 24
SETTINGS = (
    "name=tiny",
    "model.image_size=16",
    "pretrain.train_images=96",
    "pretrain.duration=40 epochs",
    "pretrain.warmup=1 epoch",
    "pretrain.global_batch_size=16",
    "pretrain.micro_batch_size=4",
    "pretrain.checkpoint_every=10 steps",
    "pretrain.decoder_dim=16",
    "finetune=null",
    "log_every=5",
    # A hang of a model whose step takes milliseconds need not be waited for.
    "cluster.limits.step=5",
    "cluster.limits.checkpoint=20",
    "cluster.warm_spare=true",
    "pretrain.spike_factor=10",
    "pretrain.spike_window=10",
)


def tiny(changes: Sequence[str] = ()) -> PipelineConfig:
    """The demo's preset, cut down: 240 steps by two workers.

    Raises:
        ConfigError: Naming every problem of the changes at once.
    """
    return load_preset("demo", (*SETTINGS, *changes))


def make_images(folder: Path, train: int = 32, val: int = 8) -> Path:
    """Write three classes of noisy patterns, with so many images of each per split."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    patterns = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, np.sin(20 * x) > 0, x)
    for split, count in (("train", train), ("val", val)):
        for name, pattern in zip(CLASSES, patterns, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noisy = 60 + 120 * pattern[..., None] + random.normal(0, 20, (SIDE, SIDE, 3))
                pixels = np.clip(noisy, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
