"""`convnextv2 weights`: what it prints, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from torch import Tensor

from cluster.checkpoint import publishing
from cluster.checkpoint.fragment_files import file_name, write_fragments
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT, StateFragment
from cluster.durable import FileDigest
from convnextv2.encoder import ConvNeXtV2
from convnextv2.weights import Evaluation, Metadata, encoder_of, inspect, read
from pipelines import cli
from tests.cluster.process_group import run_group
from tests.convnextv2.weights.made_weights import (
    classifier_state,
    encoder_state,
    fcmae_state,
    sparse_training_state,
)
from tests.convnextv2.weights.test_weights_dialects import assert_same

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """`main` takes over SIGTERM; give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_inspect_says_what_a_classifier_is(tmp_path: Path, capsys: Capture) -> None:
    state = ConvNeXtV2.from_size("atto", num_classes=10, in_channels=1).state_dict()
    path = tmp_path / "atto.pt"
    torch.save({"model": state, "model_ema": state}, path)
    assert cli.main(["weights", "inspect", str(path)]) == 0
    # Counted from the published 3,708,400 (1000 classes of 320 + 1; 3 channels of 16 pixels by 40).
    parameters = 3_708_400 - 990 * 321 - 2 * 16 * 40
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "  dialect     official",
        "  container   PyTorch",
        "  part        model, there is also model_ema",
        "  size        atto, depths 2-2-6-2, channels 40-80-160-320",
        "  images      1 channels, stem stride 4",
        "  classes     10",
        f"  parameters  {parameters:,} in float32",
        "  decoder     none, so reconstruct will not work: it is a classifier, whose decoder was "
        "dropped before fine-tuning",
    ]


def test_inspect_says_what_a_pretraining_is(tmp_path: Path, capsys: Capture) -> None:
    state = fcmae_state("unet", dim=64)
    torch.save({"model": sparse_training_state(state)}, tmp_path / "sparse.pth")
    assert cli.main(["weights", "inspect", str(tmp_path / "sparse.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "sparse.pth"),
        "dialect": "official-sparse",
        "prefix": "",
        "left_out": [],
        "container": "PyTorch",
        "part": "model",
        "parts": ["model"],
        "size": "custom",
        "depths": [1, 1, 2, 1],
        "dims": [4, 6, 8, 10],
        "in_channels": 3,
        "stem_stride": 4,
        "num_classes": 0,
        "decoder": "unet",
        "decoder_dim": 64,
        "decoder_depth": 2,
        "parameters": sum(value.numel() for value in state.values()),
        "dtypes": ["float32"],
        "classes": [],
        "evaluation": None,
        "why_no_reconstruction": "",
    }
    assert cli.main(["weights", "inspect", str(tmp_path / "sparse.pth")]) == 0
    assert "  decoder     unet, 64 channels, depth 2\n" in capsys.readouterr().out


def test_inspect_says_why_a_published_file_cannot_reconstruct(
    tmp_path: Path, capsys: Capture
) -> None:
    torch.save({"model": encoder_state()}, tmp_path / "atto_fcmae.pt")
    assert cli.main(["weights", "inspect", str(tmp_path / "atto_fcmae.pt")]) == 0
    out = capsys.readouterr().out
    assert "  classes     no head\n" in out
    assert "reconstruct will not work: it is an encoder alone, as are the published" in out


def test_convert_writes_and_says_what_it_left_out(tmp_path: Path, capsys: Capture) -> None:
    source, target = tmp_path / "fcmae.safetensors", tmp_path / "deep" / "timm.safetensors"
    save_file(fcmae_state(), source)
    assert cli.main(["weights", "convert", str(source), str(target), "--to", "timm"]) == 0
    encoder = encoder_of(fcmae_state())
    assert_same(read(target), encoder)
    parameters = sum(value.numel() for value in encoder.values())
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: custom for timm, {parameters:,} parameters, from fcmae",
        "  the encoder only: timm has no place for FCMAE's decoder and mask token",
        "  without final norm and head, which are trained with the classifier: timm starts them "
        "anew",
        "  load it with",
        "    import timm",
        "    model = timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), "
        "num_classes=0, use_grn=True, ls_init_value=None)",
        f"    timm.models.load_checkpoint(model, '{target}', strict=False)",
    ]


def test_convert_of_a_file_that_says_everything_has_nothing_to_add(
    tmp_path: Path, capsys: Capture
) -> None:
    state = ConvNeXtV2.from_size("atto", num_classes=3).state_dict()
    known = Metadata(classes=("a", "b", "c"), evaluation=Evaluation.usual(128))
    save_file(state, tmp_path / "model.safetensors", metadata=known.as_entries())
    words = ["weights", "convert", str(tmp_path / "model.safetensors"), str(tmp_path / "hf")]
    assert cli.main([*words, "--to", "hf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "model.safetensors"),
        "dialect": "official",
        "destination": str(tmp_path / "hf"),
        "to": "hf",
        "size": "atto",
        "parameters": sum(value.numel() for value in state.values()),
        "notes": [],
        "load": [
            "from transformers import AutoModelForImageClassification",
            f"model = AutoModelForImageClassification.from_pretrained('{tmp_path / 'hf'}')",
        ],
    }
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert_same(read(tmp_path / "hf"), state)
    assert inspect(tmp_path / "hf").metadata == known


def test_convert_is_told_what_the_file_does_not_say(tmp_path: Path, capsys: Capture) -> None:
    save_file(classifier_state(), tmp_path / "model.safetensors")
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n\ndog\neel\n")
    words = ["weights", "convert", str(tmp_path / "model.safetensors")]
    assert cli.main([*words, str(tmp_path / "a"), "--to", "hf"]) == 0
    out = capsys.readouterr().out
    assert "the classes have no names in the file; give --classes FILE" in out
    assert "224 px, central 87.5%, ImageNet's mean and deviation are assumed; --image-size" in out
    more = ["--classes", str(tmp_path / "names.txt"), "--image-size", "384", "--crop", "squash"]
    assert cli.main([*words, str(tmp_path / "b"), "--to", "hf", *more]) == 0
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["ant", "bee", "cow", "dog", "eel"]
    processor = json.loads((tmp_path / "b" / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["do_center_crop"]) == (
        {"height": 384, "width": 384},
        False,
    )
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert cli.main([*words, str(tmp_path / "c"), "--to", "hf", *more]) == 1
    assert "names.txt names 2 classes, " in capsys.readouterr().err


def custom(**changes: Any) -> ConvNeXtV2:
    torch.manual_seed(0)
    settings = {"num_classes": 3, **changes}
    return ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), **settings)


@pytest.mark.parametrize("to", ["timm", "hf"])
@pytest.mark.parametrize(
    "model",
    [
        ConvNeXtV2.from_size("atto", num_classes=3),
        ConvNeXtV2.from_size("atto", num_classes=1000),
        ConvNeXtV2.from_size("femto", num_classes=0, in_channels=5),
        custom(),
        custom(num_classes=0),
        custom(stem_stride=1, in_channels=1),
    ],
    ids=["atto", "1000", "encoder", "custom", "custom-encoder", "stem-1"],
)
def test_what_is_printed_loads_what_was_written(
    model: ConvNeXtV2, to: str, tmp_path: Path, capsys: Capture
) -> None:
    """The lines that `convert` prints, run as they are; the model is ours."""
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    source, target = tmp_path / "model.safetensors", tmp_path / "it's.pt"
    save_file(model.state_dict(), source)
    assert cli.main(["weights", "convert", str(source), str(target), "--to", to]) == 0
    printed = capsys.readouterr().out
    found: dict[str, Any] = {}
    exec(textwrap.dedent(printed.partition("load it with\n")[2]), found)
    theirs = found["model"].eval()
    images = torch.randn(2, model.in_channels, 64, 96)
    with torch.inference_mode():
        if model.head is not None:
            logits = theirs(images)
            ours, other = model(images), logits if to == "timm" else logits.logits
        elif to == "timm":
            ours, other = model(images), theirs.forward_features(images)
        else:
            ours, other = model.stage_features(images)[0], theirs(images).feature_maps[0]
            ours = F.layer_norm(ours, ours.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)
    assert ours.std() > 0.01
    torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-4)


def test_timm_has_no_model_with_a_stem_of_stride_2(tmp_path: Path, capsys: Capture) -> None:
    source, target = tmp_path / "model.safetensors", tmp_path / "timm.pt"
    save_file(custom(stem_stride=2).state_dict(), source)
    assert cli.main(["weights", "convert", str(source), str(target), "--to", "timm"]) == 1
    assert "timm has no ConvNeXt V2 with a stem of stride 2: " in capsys.readouterr().err
    assert not target.exists()
    # As is said there, whatever it is built with.
    theirs = ConvNeXt(
        depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), patch_size=2, use_grn=True, ls_init_value=None
    )
    assert any(name.startswith("stages.0.downsample.") for name in theirs.state_dict())


def test_inspect_says_what_stands_before_the_names(tmp_path: Path, capsys: Capture) -> None:
    state = {f"student.backbone.{name}": value for name, value in encoder_state().items()}
    state |= {f"student.head.{number}": torch.zeros(1) for number in range(5)}
    torch.save({"state_dict": state}, tmp_path / "dino.ckpt")
    assert cli.main(["weights", "inspect", str(tmp_path / "dino.ckpt")]) == 0
    assert (
        "  names       under student.backbone.; 5 others are left out: student.head.0, "
        "student.head.1, student.head.2, …\n"
    ) in capsys.readouterr().out


def test_convert_reads_the_part_it_is_told(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in classifier_state().items()}
    torch.save({"model": classifier_state(), "model_ema": average}, tmp_path / "best.pth")
    target = tmp_path / "out.pt"
    words = ["weights", "convert", str(tmp_path / "best.pth"), str(target), "--to", "official"]
    assert cli.main([*words, "--part", "model_ema"]) == 0
    assert_same(read(target), average)


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_errors_are_one_line_and_nothing_is_written(
    verb: str, tmp_path: Path, capsys: Capture
) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "odd.pt")
    more = [str(tmp_path / "out.pt"), "--to", "timm"] if verb == "convert" else []
    for name, words in (
        ("odd.pt", "is refused: besides tensors it asks for torch.nn.modules.linear.Linear"),
        ("gone.pt", "does not exist"),
    ):
        assert cli.main(["weights", verb, str(tmp_path / name), *more]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def save_as_a_run_does(folder: Path) -> None:
    """One worker saves a pretraining in DeepSpeed's own files, under ZeRO-0, 1 and 3."""
    from cluster.batch_layout import BatchLayout
    from cluster.engine.deepspeed_engine import DeepSpeedEngine
    from cluster.engine.settings import EngineSettings
    from cluster.engine.zero_config import ZeroSettings
    from convnextv2.fcmae import FCMAE
    from convnextv2.tasks.pretrain import PretrainTask

    for stage in (0, 1, 3):
        torch.manual_seed(0)
        model = FCMAE.from_size("pocket", image_size=64, decoder_dim=8)
        torch.save(model.state_dict(), folder / "expected.pt")
        task = PretrainTask(model, seed=0)
        engine = DeepSpeedEngine(
            task,
            [{"params": list(task.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            settings=EngineSettings(zero=ZeroSettings(stage=stage)),
            batch_layout=BatchLayout(2, micro_batch_size=2, world_size=1),
            device=torch.device("cpu"),
        )
        engine._engine.save_checkpoint(str(folder / f"zero-{stage}"), tag="deepspeed")


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_read(tmp_path: Path, capsys: Capture) -> None:
    run_group(save_as_a_run_does, 1, tmp_path, tmp_path)
    expected = torch.load(tmp_path / "expected.pt")
    for stage in (0, 1):
        assert_same(read(tmp_path / f"zero-{stage}"), expected)
    assert cli.main(["weights", "inspect", str(tmp_path / "zero-3")]) == 1
    told = capsys.readouterr().err
    assert "is a ZeRO-3 checkpoint of DeepSpeed" in told
    # What is advised makes whole weights of it.
    command = told.partition("of them: ")[2].partition("; then give")[0]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    assert_same(read(tmp_path / "zero-3" / "weights"), expected)


@pytest.mark.parametrize("part", [None, "ema"])
def test_a_checkpoint_folder_of_a_run_is_inspected_and_converted(
    part: str | None, tmp_path: Path, capsys: Capture
) -> None:
    """In fragments of two workers, as cluster.checkpoint publishes them."""
    state = classifier_state()
    average = {name: value + 1 for name, value in state.items()}
    known = Metadata(classes=tuple("abcde"), evaluation=Evaluation.usual(64))
    step = publish(state, average, tmp_path, {"weights": known.as_entries()})
    words = [] if part is None else ["--part", part]
    assert cli.main(["weights", "inspect", str(step), "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["container"], told["parts"]) == ("checkpoint of a run", ["ema", "weights"])
    assert (told["classes"], told["evaluation"]["image_size"]) == (list("abcde"), 64)
    target = tmp_path / "out.safetensors"
    assert cli.main(["weights", "convert", str(step), str(target), "--to", "official", *words]) == 0
    assert_same(read(target), average if part else state)
    assert inspect(target).metadata == known


def test_a_checkpoint_that_is_damaged_is_not_read(tmp_path: Path, capsys: Capture) -> None:
    step = publish(classifier_state(), classifier_state(), tmp_path, {})
    file = step / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert cli.main(["weights", "inspect", str(step)]) == 1
    assert "step-00000003 cannot be read: " in capsys.readouterr().err


def publish(
    state: Mapping[str, Tensor], average: Mapping[str, Tensor], root: Path, notes: dict[str, Any]
) -> Path:
    """A checkpoint of step 3; of every parameter one worker has the first third."""

    def write(directory: Path) -> dict[str, FileDigest]:
        entries = {}
        for rank in (0, 1):
            fragments = []
            for name, value in state.items():
                cut = value.numel() // 3
                part = slice(None, cut) if rank == 0 else slice(cut, None)
                kinds = {WEIGHT: value, EMA_WEIGHT: average[name]}
                tensors = {kind: each.flatten()[part].clone() for kind, each in kinds.items()}
                shape = tuple(value.shape)
                fragments.append(StateFragment(f"model.{name}", shape, cut * rank, tensors))
            file = file_name(rank)
            entries[file] = write_fragments(directory / file, fragments)
        return entries

    return publishing.publish(root, 3, write, notes).path
