"""Every stage beside pretraining and fine-tuning, in one small run with every real part."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.integration.conftest import CLASSES, Start, event_log, output

pytestmark = pytest.mark.soak

TRAINING = {
    "duration": "4 steps",
    "global_batch_size": 16,
    "micro_batch_size": 8,
    "base_lr": 0.01,
    "augment": {"crop_scale": [0.6, 1.0]},
}
STAGES = [
    "write",
    "write-intermediate",
    "pretrain",
    "knn",
    "linear-probe",
    "intermediate",
    "finetune",
    "evaluate",
    "evaluate-linear-probe",
    "report",
]


def read(run_dir: Path, stage: str, name: str) -> Any:
    return json.loads(output(run_dir, stage, name).read_text())


def weights(run_dir: Path, stage: str, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(output(run_dir, stage, name))


def test_every_stage_there_is(start: Start, photos: Path, tmp_path: Path) -> None:
    run_dir, others = tmp_path / "run", {"source": str(photos), "max_images": 48}
    settings = (
        "pretrain.duration=4 steps",
        "pretrain.warmup=0",
        "finetune.duration=4 steps",
        "finetune.warmup=0",
        "finetune.scratch_baseline=false",
        "finetune.ema_decay=0.9",
        "finetune.image_size=24",
        "finetune.evaluate_every=2 steps",
        f"knn={json.dumps({'k': 5, 'batch_size': 7})}",
        f"linear_probe={json.dumps({**TRAINING, 'trainable': 'head'})}",
        f"intermediate={json.dumps({**TRAINING, 'data': others})}",
    )
    result = start("demo", run_dir, "--json", settings=settings).result()
    assert [stage["name"] for stage in result["stages"]] == STAGES
    assert set(result["evaluations"]) == {"knn", "finetune", "linear-probe"}
    assert {each["images"] for each in result["evaluations"].values()} == {24}

    neighbours = read(run_dir, "knn", "knn.json")
    assert (neighbours["bank"], neighbours["images"], neighbours["k"]) == (96, 24, 5)
    # A disc, a grating and a ramp: even features of 4 steps tell them apart better than chance.
    assert neighbours["top1"] > 1 / len(CLASSES)
    assert neighbours["top5"] == 1

    pretrained = weights(run_dir, "pretrain", "fcmae.safetensors")
    probed = weights(run_dir, "linear-probe")
    encoder = {name.removeprefix("encoder."): value for name, value in pretrained.items()}
    frozen = [name for name in probed if not name.startswith(("norm.", "head."))]
    assert frozen
    assert all(probed[name].equal(encoder[name]) for name in frozen)
    assert (probed["norm.weight"] == 1).all()
    assert probed["head.bias"].any()

    # What is fine-tuned starts from the intermediate step's weights; its average lies beside it.
    tuned, average = (
        weights(run_dir, "finetune"),
        weights(run_dir, "finetune", "model-ema.safetensors"),
    )
    assert tuned.keys() == average.keys()
    assert not tuned["head.weight"].equal(average["head.weight"])
    losses = [
        line["loss"] for line in event_log(run_dir, "intermediate") if line["kind"] == "point"
    ]
    assert len(losses) == 2
    evaluation = read(run_dir, "evaluate", "evaluation.json")
    assert evaluation["images"] == evaluation["ema"]["images"] == 24
    assert sum(map(sum, evaluation["ema"]["confusion"])) == 24
    assert result["evaluations"]["finetune"]["ema"]["top1"] == evaluation["ema"]["top1"]

    # Training looked at the same images in between, and at the end: the same network.
    looks = [line for line in event_log(run_dir, "finetune") if line["kind"] == "validation"]
    assert [line["step"] for line in looks] == [2, 4]
    for suffix, scored in (("", evaluation), ("_ema", evaluation["ema"])):
        assert looks[-1][f"val_top1{suffix}"] == scored["top1"]
        assert looks[-1][f"val_top5{suffix}"] == scored["top5"]

    page = output(run_dir, "report", "report.html").read_text()
    for name in ("pretrained, EMA", "linear probe", "nearest neighbours"):
        assert name in page
    assert "FCMAE pretraining with intermediate fine-tuning" in page
