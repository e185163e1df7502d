"""`convnextv2 checkpoint`: what it finds and says of whole and of damaged checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from safetensors.torch import load_file

from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT, StateFragment
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import MANIFEST
from convnextv2.encoder import ConvNeXtV2
from convnextv2.weights import Evaluation, Metadata, inspect, read
from pipelines.commands.checkpoint import PLACES
from pipelines.graph import Outputs, Pipeline, Stage, StageContext, hash_files
from tests.cluster.checkpoint.fragments import SHAPES
from tests.pipelines.commands.user import randomised, run
from tests.pipelines.training.weights.test_consolidate import expected, make_states, of_a_task, same

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("_own_signals")
NOTES = {"world_size": 2, "zero_stage": 1, "dtype": "bf16", "metrics": {"loss": 0.25, "top1": 0.5}}


def save(root: Path, step: int, notes: dict[str, Any]) -> Path:
    saver = Saver(root, KeepPolicy(last=9), asynchronous=False)
    (fragments,) = of_a_task(make_states(step), 1)
    saved = saver.save(step, fragments, notes)
    assert saved is not None
    return saved.checkpoint.path


@pytest.fixture
def pretrain(tmp_path: Path) -> Path:
    """The folder of a stage with checkpoints of steps 200 and 1000, in a run of two stages."""
    stages = tmp_path / "run" / "stages"
    save(stages / "finetune" / "0f" / "checkpoints", 50, {})
    save(stages / "pretrain" / "1a" / "checkpoints", 200, NOTES | {"metrics": None})
    save(stages / "pretrain" / "1a" / "checkpoints", 1000, NOTES)
    return stages / "pretrain" / "1a"


def tear(step: Path) -> Path:
    os.truncate(step / "rank-00000.safetensors", 99)
    return step


def rot(step: Path) -> Path:
    content = bytearray((step / "rank-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (step / "rank-00000.safetensors").write_bytes(content)
    return step


def test_list_shows_a_run(pretrain: Path, tmp_path: Path, capsys: Capture) -> None:
    tear(pretrain / "checkpoints" / "step-00000200")
    assert run("checkpoint", "list", tmp_path / "run") == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in table] == [
        ["stage", "step", "size", "when", "workers", "ZeRO", "precision", "whole", "metrics"],
        ["finetune", "50", "0.0 MB", ANY, "-", "-", "-", "by size", "-"],
        ["pretrain", "200", "0.0 MB", ANY, "-", "-", "-", "NO", "-"],
        ["pretrain", "1,000", "0.0 MB", ANY, "2", "1", "bf16", "by size", "loss 0.25, top1 0.5"],
    ]
    assert len({len(line.removesuffix(re.split("  +", line)[-1])) for line in table}) == 1
    assert re.fullmatch(
        f"not whole: {pretrain}/checkpoints/step-00000200: rank-00000.safetensors has 99 bytes "
        r"instead of \d+",
        last,
    )


def test_list_as_json(pretrain: Path, capsys: Capture) -> None:
    path = pretrain / "checkpoints" / "step-00001000"
    assert run("checkpoint", "list", path, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    (found,) = content.pop("checkpoints")
    assert content == {"folder": str(path), "set_aside": []}
    written = datetime.fromisoformat(found.pop("when")).timestamp()
    assert written == pytest.approx((path / MANIFEST).stat().st_mtime, abs=1)
    assert found == {
        "path": str(path),
        "stage": "pretrain",
        "step": 1000,
        "bytes": (path / "rank-00000.safetensors").stat().st_size,
        "workers": 2,
        "zero_stage": 1,
        "dtype": "bf16",
        "metrics": {"loss": 0.25, "top1": 0.5},
        "problem": "",
    }


@pytest.mark.parametrize(
    ("folder", "steps"),
    [
        ("", [50, 200, 1000]),
        ("stages/pretrain/1a", [200, 1000]),
        ("stages/pretrain/1a/checkpoints", [200, 1000]),
        ("stages/pretrain/1a/checkpoints/step-00000200", [200]),
    ],
)
def test_a_folder_of_any_kind_will_do(
    folder: str, steps: list[int], pretrain: Path, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for context in (tmp_path / "run" / folder, Path(folder)):
        assert run("checkpoint", "list", context, "--json") == 0
        found = json.loads(capsys.readouterr().out)["checkpoints"]
        assert [each["step"] for each in found] == steps
        assert {each["stage"] for each in found} <= {"pretrain", "finetune"}
        assert run("checkpoint", "verify", context, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)["checkpoints"]) == len(steps)
        monkeypatch.chdir(tmp_path / "run")


def test_a_copy_under_another_name_will_do(pretrain: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrain / "checkpoints" / "step-00000200", tmp_path / "kept for good")
    assert run("checkpoint", "verify", tmp_path / "kept for good") == 0
    rot(tmp_path / "kept for good")
    assert run("checkpoint", "verify", tmp_path / "kept for good") == 1


def test_what_was_set_aside_is_named(pretrain: Path, capsys: Capture) -> None:
    tear(pretrain / "checkpoints" / "step-00001000")
    save(pretrain / "checkpoints", 400, NOTES)
    assert run("checkpoint", "list", pretrain) == 0
    (aside,) = (pretrain / "checkpoints").glob("*.rejected-*")
    out = capsys.readouterr().out
    assert out.endswith(
        f"set aside: {aside}: it was not whole, and training went on from before it\n"
    )
    assert "1,000" not in out
    assert run("checkpoint", "list", pretrain, "--json") == 0
    assert json.loads(capsys.readouterr().out)["set_aside"] == [str(aside)]


def test_verify_reads_every_byte(pretrain: Path, capsys: Capture) -> None:
    checkpoints = pretrain / "checkpoints"
    assert run("checkpoint", "verify", pretrain) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{checkpoints}/step-00000200: good, 0.0 MB",
        f"{checkpoints}/step-00001000: good, 0.0 MB",
    ]
    rot(checkpoints / "step-00000200")
    assert run("checkpoint", "list", pretrain) == 0
    assert "NO" not in capsys.readouterr().out, "of the right size: only verify sees it"
    assert run("checkpoint", "verify", pretrain) == 1
    problem = "rank-00000.safetensors has changed since it was written (sha256 differs)"
    assert capsys.readouterr().out.splitlines() == [
        f"{checkpoints}/step-00000200: NOT GOOD: {problem}",
        f"{checkpoints}/step-00001000: good, 0.0 MB",
    ]
    assert run("checkpoint", "verify", pretrain, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(pretrain),
        "checkpoints": [
            {"path": f"{checkpoints}/step-00000200", "good": False, "problem": problem},
            {"path": f"{checkpoints}/step-00001000", "good": True, "problem": ""},
        ],
        "outputs": [],
    }


def finish(run_dir: Path, name: str) -> Path:
    """A finished stage with two outputs; returns its folder."""

    def make(context: StageContext) -> Outputs:
        for file in ("fcmae.safetensors", "curve.json"):
            (context.directory / file).write_bytes(b"x" * 2_000_000)
        return hash_files(context.directory, "fcmae.safetensors", "curve.json")

    (result,) = Pipeline(run_dir, [Stage(name=name, run=make, settings={})]).run()
    return result.context.directory


def test_verify_reads_what_stages_have_put_out(tmp_path: Path, capsys: Capture) -> None:
    stages = [finish(tmp_path, name) for name in ("pretrain", "finetune")]
    assert run("checkpoint", "verify", tmp_path) == 0
    assert f"{stages[0]}/fcmae.safetensors: good, 2.0 MB\n" in capsys.readouterr().out
    flipped = stages[0] / "fcmae.safetensors"
    was = flipped.stat()
    with flipped.open("r+b") as file:
        file.seek(1000)
        file.write(b"y" * 1000)
    # As a disk would do it: nobody has written, so only the content tells.
    os.utime(flipped, ns=(was.st_atime_ns, was.st_mtime_ns))
    problem = "has changed since it was written (sha256 differs)"
    for folder in (tmp_path, stages[0]):
        assert run("checkpoint", "verify", folder) == 1
        assert f"{flipped}: NOT GOOD: {problem}\n" in capsys.readouterr().out
    assert run("checkpoint", "verify", tmp_path, "--json") == 1
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert {"path": str(flipped), "good": False, "problem": problem} in outputs
    assert [each["good"] for each in outputs].count(True) == 3
    (stages[1] / "COMPLETE.json").write_text("{")
    assert run("checkpoint", "verify", stages[1]) == 1
    assert "COMPLETE.json: NOT GOOD: cannot be read: " in capsys.readouterr().out


def test_where_there_are_none(tmp_path: Path, capsys: Capture) -> None:
    assert run("checkpoint", "list", tmp_path) == 0
    assert capsys.readouterr().out == f"no checkpoints in {tmp_path}\n"
    assert run("checkpoint", "list", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"] == []
    assert run("checkpoint", "verify", tmp_path) == 1
    assert (
        f"error: no checkpoints and no finished stages in {tmp_path}; give a run folder"
        in capsys.readouterr().err
    )
    for verb in ("list", "verify"):
        assert run("checkpoint", verb, tmp_path / "nowhere") == 1
        assert capsys.readouterr().err == f"error: there is no folder {tmp_path}/nowhere\n"
        (tmp_path / "file").touch()
        assert run("checkpoint", verb, tmp_path / "file") == 1
        assert f"error: {tmp_path}/file is a file; give a run folder" in capsys.readouterr().err


def test_export_writes_the_models_weights(pretrain: Path, tmp_path: Path, capsys: Capture) -> None:
    checkpoint, out = pretrain / "checkpoints" / "step-00001000", tmp_path / "new" / "m.safetensors"
    assert run("checkpoint", "consolidate", checkpoint, "--output", out) == 0
    states = make_states(1000)
    count = sum(value.numel() for value in expected(states).values())
    assert capsys.readouterr().out == (
        f"{out}: weights of step 1,000, {count} parameters in {len(SHAPES)} tensors, 0.0 MB\n"
    )
    assert same(load_file(out), expected(states))
    assert run("checkpoint", "consolidate", checkpoint, "--output", out, "--ema", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "checkpoint": str(checkpoint),
        "step": 1000,
        "ema": True,
        "file": str(out),
        "tensors": len(SHAPES),
        "parameters": count,
        "bytes": out.stat().st_size,
    }
    assert same(load_file(out), expected(states, EMA_WEIGHT))


@pytest.mark.parametrize("damage", [tear, rot])
def test_export_of_a_damaged_checkpoint_is_refused(
    damage: Any, pretrain: Path, tmp_path: Path, capsys: Capture
) -> None:
    checkpoint = damage(pretrain / "checkpoints" / "step-00001000")
    out = tmp_path / "new" / "m.safetensors"
    assert run("checkpoint", "consolidate", checkpoint, "--output", out) == 1
    assert re.search(
        rf"^error: {checkpoint} is not good, nothing is written: rank-00000\.safetensors has ",
        capsys.readouterr().err,
    )
    assert not out.parent.exists()


def test_export_of_no_checkpoint_says_where_to_look(
    pretrain: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run("checkpoint", "consolidate", pretrain, "--output", tmp_path / "m.safetensors") == 1
    words = f"error: {pretrain} is no checkpoint; `convnextv2 checkpoint list {pretrain}` shows"
    assert words in capsys.readouterr().err
    assert (
        run("checkpoint", "consolidate", tmp_path / "x", "--output", tmp_path / "m.safetensors")
        == 1
    )
    assert f"error: there is no folder {tmp_path}/x" in capsys.readouterr().err


def test_a_missing_average_is_told(tmp_path: Path, capsys: Capture) -> None:
    saver = Saver(tmp_path, KeepPolicy(), asynchronous=False)
    saved = saver.save(1, [StateFragment("model.x", (2,), 0, {WEIGHT: torch.zeros(2)})], {})
    assert saved is not None
    words = [
        "checkpoint",
        "consolidate",
        saved.checkpoint.path,
        "--output",
        tmp_path / "m.safetensors",
    ]
    assert run(*words, "--ema") == 1
    assert "holds no EMA of the weights: it is of a training without" in capsys.readouterr().err


def test_what_is_exported_is_a_weight_file(tmp_path: Path) -> None:
    model = randomised(ConvNeXtV2.from_size("pocket", num_classes=3))
    fragments = [
        StateFragment(f"model.{name}", tuple(value.shape), 0, {WEIGHT: value.detach().view(-1)})
        for name, value in model.named_parameters()
    ]
    known = Metadata(classes=("a", "b", "c"), evaluation=Evaluation.usual(64))
    notes = {"weights": known.as_entries()}
    saved = Saver(tmp_path, KeepPolicy(), asynchronous=False).save(1, fragments, notes)
    assert saved is not None
    out = tmp_path / "model.safetensors"
    assert run("checkpoint", "consolidate", saved.checkpoint.path, "--output", out) == 0
    assert same(read(out), model.state_dict())
    assert inspect(out).metadata == known


def test_export_needs_neither_ray_nor_deepspeed_nor_a_gpu(pretrain: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pipelines import cli\n"
        "assert cli.main(sys.argv[1:]) == 0\n"
        "heavy = ('ray', 'deepspeed', 'mlflow', 'ffcv', 'numba', 'timm')\n"
        "print('loaded:', [name for name in heavy if name in sys.modules])\n"
        "print('GPU:', torch.cuda.is_initialized())\n"
    )
    checkpoint = pretrain / "checkpoints" / "step-00001000"
    words = ["checkpoint", "consolidate", checkpoint, "--output", tmp_path / "m.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == ["loaded: []", "GPU: False"]
    assert (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("verb", ["list", "verify", "consolidate"])
def test_help_ends_in_an_example(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        run("checkpoint", verb, "--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  convnextv2 checkpoint {verb} runs/demo" in out
    assert "--json" in out


def test_checkpoints_are_looked_for_where_training_puts_them() -> None:
    from pipelines.training.checkpoints import CHECKPOINTS

    assert ("step-*", f"{CHECKPOINTS}/step-*", f"stages/*/*/{CHECKPOINTS}/step-*") == PLACES
