"""Every function of ours that a training calls is in the key of its stage, or exempt."""

import inspect
import json
import sys
import threading
from pathlib import Path
from types import FrameType

import pytest

from convnextv2.data.shards.manifest import read_manifest
from pipelines.graph.exempt import EXEMPT
from pipelines.graph.keys import PACKAGES, installed_sources, name_of
from pipelines.presets import load_preset
from pipelines.stages import pretrain
from pipelines.stages.common import run_training
from pipelines.training.loop import train
from tests.cluster.process_group import run_group
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.pipelines.stages.jobs import made_up_job


def traced(root: Path, found: Path) -> None:
    """Pretrain for two steps, and note the modules whose functions are called."""
    config = load_preset(
        "demo",
        ["pretrain.duration=2 steps", "pretrain.warmup=0", "pretrain.global_batch_size=4",
         "pretrain.micro_batch_size=2", "pretrain.train_images=null",
         "pretrain.ema_decay=0.9", "log_every=1"],
    )  # fmt: skip
    shards = root / "shards"
    normalization = read_manifest(shards).normalization
    job = made_up_job(config, config.pretrain, root, shards=shards, normalization=normalization)
    called: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        # What runs at import is no function's body.
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            called.add(frame.f_globals.get("__name__", ""))

    threading.setprofile(note)
    sys.setprofile(note)
    train(job)
    sys.setprofile(None)
    threading.setprofile(None)
    found.write_text(json.dumps(sorted(called)))


@pytest.mark.slow
def test_what_ran_is_in_the_key(tmp_path: Path) -> None:
    write(Pictures(((32, 32),) * 9), tmp_path / "shards")
    run_group(traced, 1, tmp_path, tmp_path, tmp_path / "called")
    called = set(json.loads((tmp_path / "called").read_text()))
    ours = {name for name in called if name.partition(".")[0] in PACKAGES}
    assert {
        "cluster.engine.adamw",
        "convnextv2.fcmae.model",
        "convnextv2.data.loading.loader",
    } <= ours
    code = [name_of(run_training), name_of(pretrain.build_task)]
    sources = installed_sources(PACKAGES)
    in_key = sources.closure(code, EXEMPT).keys()
    assert {"cluster.engine.adamw", "convnextv2.fcmae.model"} <= in_key
    # What is in no key is exempt, or is reached by way of what is exempt only.
    assert sorted(ours - sources.closure(code, frozenset()).keys()) == []
