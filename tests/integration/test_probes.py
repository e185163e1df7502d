"""Every stage beside pretraining and fine-tuning, in one small run with every real part."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from pipelines.results import RESULT_FILE, Result, read_result
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


def result_of(run_dir: Path, stage: str) -> Result:
    return read_result(output(run_dir, stage, RESULT_FILE).parent)


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

    neighbours = result_of(run_dir, "knn")
    assert (neighbours.facts["bank"], neighbours.facts["k"]) == (96, 5)
    # A disc, a grating and a ramp: even features of 4 steps tell them apart better than chance.
    assert neighbours.values["top1"] > 1 / len(CLASSES)
    assert neighbours.values["top5"] == 1

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
    evaluation = result_of(run_dir, "evaluate")
    assert evaluation.ema is not None
    assert evaluation.main.images == evaluation.ema.main.images == 24
    matrix = evaluation.ema.table("confusion")
    assert matrix is not None
    assert sum(int(count or 0) for _, *counts in matrix.rows for count in counts) == 24
    assert result["evaluations"]["finetune"]["ema"]["top1"] == evaluation.ema.values["top1"]

    # Training looked at the same images in between, and at the end: the same network.
    looks = [line for line in event_log(run_dir, "finetune") if line["kind"] == "validation"]
    assert [line["step"] for line in looks] == [2, 4]
    for suffix, scored in (("", evaluation), ("_ema", evaluation.ema)):
        for name, value in scored.values.items():
            assert looks[-1][f"val_{name}{suffix}"] == value

    page = output(run_dir, "report", "report.html").read_text()
    for name in ("pretrained, EMA", "linear probe", "nearest neighbours"):
        assert name in page
    assert "FCMAE pretraining with intermediate fine-tuning" in page
