"""The whole stack against a bare PyTorch loop: same model, batch and threads.

The stack is the demo's pretraining as users run it: Ray, DeepSpeed ZeRO-1, FFCV, MLflow and
checkpoints, one worker. The bare loop has normalised images in the device's memory, and does only
forward, backward and AdamW. Both run until their speed is steady; start-up is not counted.
"""

import itertools
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from cluster.placement import worker_device
from convnextv2.fcmae.masking import sample_masks
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from pipelines.bench.device import seconds_on
from pipelines.config import PipelineConfig
from pipelines.graph import Pipeline
from pipelines.presets import load_preset
from pipelines.runtime.console import Screen
from pipelines.runtime.events import curve, read_events
from pipelines.runtime.logs import redirected
from pipelines.runtime.session import Session
from pipelines.stages import build_stages
from pipelines.stages.pretrain import build_fcmae

THREADS, BATCH, IMAGES, EPOCHS = 2, 128, 5120, 5
SETTINGS = (
    "cluster.num_workers=1",
    f"cluster.cpus_per_worker={THREADS}",
    f"pretrain.global_batch_size={BATCH}",
    f"pretrain.micro_batch_size={BATCH}",
    f"pretrain.train_images={IMAGES}",
    f"pretrain.duration={EPOCHS} epochs",
    "pretrain.checkpoint_every=50 steps",
)


class Comparison(TypedDict):
    """Medians over `pairs` turns, in images/s; `what` describes the run."""

    what: str
    stack_images_per_second: float
    bare_images_per_second: float
    ratio: float
    pairs: int


def compare(folder: Path, pairs: int, device: str = "cpu") -> Comparison:
    """Images/s of both, and the median of their ratio over the pairs."""
    config = load_preset("demo", [*SETTINGS, f"cluster.use_gpu={str(device == 'cuda').lower()}"])
    assert config.pretrain is not None
    turns = []
    for turn in range(pairs):
        # The bare loop runs before and after, because the machine's speed drifts during the run.
        before, stack = bare_rate(config), stack_rate(config, folder / str(turn))
        turns.append((stack, (before + bare_rate(config)) / 2))
    ratios = sorted(stack / bare for stack, bare in turns)
    return {
        "what": f"FCMAE {config.model.size}, {config.model.image_size} px, batch {BATCH}, "
        f"{THREADS} threads, checkpoint every {config.pretrain.checkpoint_every}",
        "stack_images_per_second": sorted(stack for stack, _ in turns)[pairs // 2],
        "bare_images_per_second": sorted(bare for _, bare in turns)[pairs // 2],
        "ratio": ratios[pairs // 2],
        "pairs": pairs,
    }


def stack_rate(config: PipelineConfig, run_dir: Path) -> float:
    """Images/s between the first and the last logged point of a pretraining run."""
    images = np.random.default_rng(0).integers(0, 255, (IMAGES, 28, 28), np.uint8)
    run_dir.mkdir(parents=True)
    source = run_dir / "noise"
    source.mkdir()
    write_idx(source, images)
    with redirected(run_dir / "driver.log") as terminal:
        screen = Screen(Console(file=terminal, quiet=True))
        with Session(config, run_dir, screen) as session:
            stages = build_stages(config, source, session, [], {"write", "pretrain"})
            pretrained = Pipeline(run_dir, stages).run()[-1].context.directory
    points = curve(read_events(pretrained))
    first, last = points[0], points[-1]
    return (last.values["images"] - first.values["images"]) / (last.time - first.time)


def bare_rate(config: PipelineConfig, steps: int = 40, warm_up: int = 5) -> float:
    """Images/s of the plain loop on images that are in memory already."""
    device = worker_device(use_gpu=config.cluster.use_gpu)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    assert config.pretrain is not None
    model = build_fcmae(config.model, config.pretrain).to(device)
    rule = GroupRule(weight_decay=config.pretrain.weight_decay)
    groups = parameter_groups(model, rule, model.encoder.depths)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=config.pretrain.betas)
    side = config.model.image_size
    batches = torch.randn(8, BATCH, side, side, 3).permute(0, 1, 4, 2, 3).to(device)
    masks = sample_masks(
        seed=0, epoch=0, indices=range(BATCH), num_patches=16, mask_ratio=model.mask_ratio
    )
    endless = itertools.cycle(batches)

    def train(count: int) -> None:
        for images in itertools.islice(endless, count):
            model(images, mask=masks).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    train(warm_up)
    seconds = seconds_on(device, lambda: train(steps))
    torch.set_num_threads(threads)
    return steps * BATCH / seconds


def write_idx(folder: Path, images: NDArray[np.uint8]) -> None:
    """Write images as both splits of an idx collection with labels 0-9."""
    labels = (np.arange(len(images)) % 10).astype(np.uint8)
    for split in ("train", "t10k"):
        for name, content in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, ">u4").tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(header + content.tobytes())
