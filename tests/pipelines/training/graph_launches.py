"""How much of a training step lies outside of its CUDA graphs; prints a table in Markdown.

    python -m tests.pipelines.training.graph_launches atto base

Two workers on this machine's CPU pretrain FCMAE with a moving average, one
micro batch a step, graphs recorded and replayed by `tests.cuda_graphs`. Operations of PyTorch are
counted in the third step, views and allocations not. Our own kernels are not operations of PyTorch
here, so replays have more than is counted. "fixed inputs" are the masks, their indices and copies.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.batch_layout import BatchLayout
from cluster.engine.cuda_graph import GraphedForward
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from convnextv2.fcmae import FCMAE
from convnextv2.recipe.optimizer import GroupRule, parameter_groups
from pipelines.doctor.gpu.workload import Pretraining, random_pixels
from tests import cuda_graphs
from tests.cluster.process_group import run_group

WORKERS, BATCH, SIDE = 2, 1, 64
CPU = torch.device("cpu")
PRECISIONS: dict[int, Precision] = {0: "fp32", 1: "bf16", 2: "bf16"}
"""By stage; stage 0 in bf16 is refused on GPUs."""


class CountedInputs(Pretraining):
    """Notes how many operations its fixed inputs take."""

    launches: cuda_graphs.Launches | None = None
    inputs: Counter[str]

    def fixed_inputs(self, pixels: torch.Tensor) -> Any:  # type: ignore[override]
        if self.launches is None:
            return super().fixed_inputs(pixels)
        before = Counter(self.launches.outside)
        found = super().fixed_inputs(pixels)
        self.inputs = self.launches.outside - before
        return found


def engine_of(task: Pretraining, stage: int) -> DeepSpeedEngine:
    return DeepSpeedEngine(
        task,
        parameter_groups(task, GroupRule(weight_decay=0.05), task.depths),
        betas=(0.9, 0.95),
        settings=EngineSettings(
            zero=ZeroSettings.model_validate({"stage": stage}),
            precision=PRECISIONS[stage],
            grad_clip=1.0,
            ema_decay=0.999,
            cuda_graph=True,
        ),
        batch_layout=BatchLayout(WORKERS * BATCH, BATCH, WORKERS),
        device=CPU,
    )


def count(size: str, stage: int) -> None:
    """Print a row of the table."""
    torch.manual_seed(0)
    task = CountedInputs(FCMAE.from_size(size, image_size=SIDE))
    with pytest.MonkeyPatch.context() as patch:
        cuda_graphs.install(patch)
        engine = engine_of(task, stage)
        assert isinstance(task.forward, GraphedForward)
        pixels = random_pixels(BATCH, SIDE, CPU)
        for _ in range(2):
            engine.train_step([pixels], 1e-3)
        with cuda_graphs.Launches() as task.launches:
            engine.train_step([pixels], 1e-3)
    if dist.get_rank():
        return
    inside, inputs = task.launches.inside.total(), task.inputs.total()
    rest = task.launches.outside - task.inputs
    parameters = len(list(task.parameters()))
    share = rest.total() / (inside + inputs + rest.total())
    print(
        f"| {size.title()} | {stage} | {PRECISIONS[stage]} | {parameters} | {inside:,} | {inputs} "
        f"| {rest.total()} | {share:.1%} |",
        flush=True,
    )


def work(sizes: list[str]) -> None:
    for size in sizes:
        for stage in PRECISIONS:
            count(size, stage)


def main() -> None:
    print(
        "| size | ZeRO | precision | parameters | replayed | fixed inputs | rest "
        "| share of the rest |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_group(work, WORKERS, Path(folder), sys.argv[1:] or ["atto", "base"])


if __name__ == "__main__":
    main()
