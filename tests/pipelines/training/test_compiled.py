"""A recipe's `compile` under the engine: it trains, resumes to the bit, and keeps all names."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from cluster.batch_layout import BatchLayout
from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.fragment_files import StateFiles
from cluster.checkpoint.fragments import WEIGHT
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import latest_good
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.resilience.goodput import Stopwatch
from convnextv2.tasks.classify import ClassifyTask
from pipelines.presets import load_preset
from pipelines.training.anomalies.spikes import SpikeDetector
from pipelines.training.build import build_engine, seed_step
from pipelines.training.pace import Pace
from tests.cluster.process_group import run_group
from tests.convnextv2.tasks.test_tasks import batch_of
from tests.pipelines.stages.jobs import made_up_job

STEPS, BREAK = 6, 3
RATE = 1e-2


def engine(folder: Path, stage: int, *, compiled: bool) -> DeepSpeedEngine:
    """Of the demo's fine-tuning, with drop path, on images of 16 pixels."""
    config = load_preset(
        "demo",
        ["finetune.global_batch_size=4", "finetune.micro_batch_size=4", "finetune.drop_path=0.2",
         f"cluster.zero.stage={stage}", "cluster.num_workers=1", "pretrain=null",
         "finetune.scratch_baseline=false", f"finetune.compile={str(compiled).lower()}"],
    )  # fmt: skip
    job = made_up_job(config, config.finetune, folder, num_classes=4)
    cpu, spikes = torch.device("cpu"), SpikeDetector(None)
    return build_engine(job, cpu, BatchLayout(4, 4, 1), Pace(job, Stopwatch()), spikes)


def losses_of(trained: DeepSpeedEngine, begin: int, end: int) -> list[float]:
    losses = []
    for step in range(begin, end):
        seed_step(0, step, 0)
        batch = batch_of(list(range(4 * step, 4 * step + 4)))
        losses.append(trained.train_step([batch], RATE)["loss"].item())
    return losses


def saved(trained: DeepSpeedEngine, folder: Path, step: int) -> None:
    notes = {"updates": trained.updates, "skipped_steps": 0}
    Saver(folder, KeepPolicy(), asynchronous=False).save(step, trained.fragments, notes)


def compare(folder: Path, stage: int, backend: str) -> None:
    """Train eager, compiled, and compiled with a break; note losses and files."""
    torch.compile = partial(torch.compile, backend=backend)
    # Optimizing what inductor writes takes the C++ compiler most of its time.
    torch._inductor.config.aot_inductor.debug_compile = True
    whole = engine(folder, stage, compiled=True)
    assert isinstance(whole.module, ClassifyTask)
    assert hasattr(whole.module.model.stage_features, "_torchdynamo_orig_callable")
    compiled = losses_of(whole, 0, STEPS)
    saved(whole, folder / "whole", STEPS)
    with whole.evaluating() as module:
        evaluated = module(batch_of([1, 2, 3, 4])).loss.item()

    first = engine(folder, stage, compiled=True)
    resumed = losses_of(first, 0, BREAK)
    saved(first, folder / "broken", BREAK)
    found = latest_good(folder / "broken").found
    assert found is not None
    second = engine(folder, stage, compiled=True)
    second.restore(found.path, found.notes)
    resumed += losses_of(second, BREAK, STEPS)
    saved(second, folder / "broken", STEPS)

    plain = engine(folder, stage, compiled=False)
    eager = losses_of(plain, 0, STEPS)
    saved(plain, folder / "eager", STEPS)
    results = {"compiled": compiled, "resumed": resumed, "eager": eager, "evaluated": evaluated}
    (folder / "results.json").write_text(json.dumps(results))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = latest_good(folder).found
    assert found is not None
    files = StateFiles(found.path)
    return {
        name: files.read(WEIGHT, name, 0, math.prod(shape)) for name, shape in files.shapes.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "backend"),
    # The code generator of the default backend takes minutes.
    [
        (1, "aot_eager"),
        *[pytest.param(stage, "aot_eager", marks=pytest.mark.soak) for stage in (0, 2)],
        pytest.param(1, "inductor", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_a_compiled_encoder_trains_resumes_and_keeps_its_names(
    stage: int, backend: str, tmp_path: Path
) -> None:
    run_group(compare, 1, tmp_path, tmp_path, stage, backend)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["resumed"] == results["compiled"]
    assert len(set(results["compiled"])) == STEPS
    assert results["evaluated"] > 0
    assert results["compiled"] == pytest.approx(results["eager"], rel=1e-3)
    whole, broken, eager = (weights(tmp_path / name) for name in ("whole", "broken", "eager"))
    assert list(whole) == list(eager)
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
