"""What every system of the benchmark trains: FCMAE Pocket on noise, on two workers, on CPUs."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from convnextv2.data.selection import Selection
from convnextv2.data.sources.idx import FASHION_CLASSES, IdxSource
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.fcmae import FCMAE
from convnextv2.tasks import TaskOutput
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.bench.stack import write_idx
from pipelines.config import ModelConfig, PipelineConfig, PretrainConfig
from pipelines.presets import load_preset
from pipelines.stages.pretrain import build_fcmae

WORKERS, IMAGES, BATCH = 2, 1280, 32
CHECKPOINT_EVERY = 20
ENDLESS = 1_000_000
SETTINGS = (
    f"pretrain.global_batch_size={BATCH}",
    f"pretrain.micro_batch_size={BATCH // WORKERS}",
    f"pretrain.train_images={IMAGES}",
    f"pretrain.duration={ENDLESS} steps",
    "pretrain.warmup=0 steps",
    f"pretrain.checkpoint_every={CHECKPOINT_EVERY} steps",
)


@dataclass(frozen=True)
class Assignment:
    """What a driver is told: its folder, the cluster, the images' shards, and a setting of ours."""

    folder: Path
    address: str
    shards: Path
    warm_spare: bool = False

    def write(self) -> None:
        words = {name: str(value) for name, value in asdict(self).items()}
        text = json.dumps({**words, "warm_spare": self.warm_spare})
        (self.folder / "assignment.json").write_text(text)

    @classmethod
    def read(cls, folder: str) -> Self:
        words = json.loads((Path(folder) / "assignment.json").read_text())
        paths = {name: Path(words[name]) for name in ("folder", "shards")}
        return cls(**{**words, **paths})


def write_images(folder: Path) -> Path:
    """Write noise as an idx collection, and as shards; returns the folder of the shards."""
    noise = np.random.default_rng(0).integers(0, 255, (IMAGES, 28, 28), np.uint8)
    write_idx(folder, noise)
    images, labels = (folder / f"train-{name}-ubyte" for name in ("images-idx3", "labels-idx1"))
    write_collection(
        IdxSource(images, labels, FASHION_CLASSES),
        "noise",
        folder / "shards",
        Selection("train"),
        WriteSettings(mode="raw"),
    )
    return folder / "shards"


class FragileTask(PretrainTask):
    """The task; the worker whose rank is in the name of the file `raise-N` raises, once."""

    def __init__(self, model: FCMAE, folder: Path) -> None:
        super().__init__(model, seed=0)
        self._order = raise_order(folder, int(os.environ["RANK"]))

    def forward(self, batch: Batch) -> TaskOutput:
        if self._order.exists():
            self._order.unlink()
            raise RuntimeError("a fault of the benchmark")
        return super().forward(batch)


def raise_order(folder: Path, rank: int) -> Path:
    """The file that makes the worker of this rank raise an exception."""
    return folder / f"raise-{rank}"


def new_task(folder: Path, model: ModelConfig, recipe: PretrainConfig) -> FragileTask:
    return FragileTask(build_fcmae(model, recipe), folder)


def demo() -> PipelineConfig:
    """The demo's settings, with those of this benchmark."""
    return load_preset("demo", list(SETTINGS))
