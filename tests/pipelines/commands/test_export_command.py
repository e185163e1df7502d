"""`convnextv2 export` as a user runs it: what is written, and what is said."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.pipelines.commands.user import classifier, fcmae, run, saved

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("_own_signals")


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_export_writes_a_checked_file(form: str, tmp_path: Path, capsys: Capture) -> None:
    weights, out = saved(classifier(), tmp_path / "a.safetensors"), tmp_path / "made" / "model"
    words = ["export", weights, out, "--format", form, "--image-size", "32x64", "--batch", 2]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("difference") <= 1e-4
    assert printed == {
        "file": str(out),
        "format": form,
        "images": [2, 3, 32, 64],
        "outputs": "logits",
    }
    assert [path.name for path in out.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        (fcmae(), ["--outputs", "logits"], r"model\.safetensors has no classifier, only an enc"),
        (classifier(), ["--image-size", "30"], r"image 30x30 is smaller than the total stride 32"),
    ],
    ids=["autoencoder", "size"],
)
def test_export_says_what_is_wrong_and_writes_nothing(
    model: nn.Module, words: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    weights = saved(model, tmp_path / "model.safetensors")
    assert run("export", weights, tmp_path / "out.pt2", "--format", "torch", *words) == 1
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_export_of_a_pretraining_is_its_encoder(tmp_path: Path, capsys: Capture) -> None:
    model = fcmae()
    weights = saved(model, tmp_path / "fcmae.safetensors")
    assert run("export", weights, tmp_path / "out.pt2", "--format", "torch", "--batch", "2") == 0
    assert "images (2, 3, height, width) to features, off by" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "out.pt2").module()
    images = torch.randn(2, 3, 40, 25)
    torch.testing.assert_close(program(images)[0], model.encoder(images), rtol=0, atol=1e-4)


def test_export_without_onnx_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr("convnextv2.find_spec", lambda name: None)
    weights = saved(classifier(), tmp_path / "a.safetensors")
    assert run("export", weights, tmp_path / "a.onnx", "--format", "onnx") == 1
    assert "pip install 'convnextv2[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "big"], "'big' is no size; give 224, or 224x320"),
        (["--image-size", "0x10"], "'0x10' is no size"),
        (["--batch", "many"], "'many' is no batch size; give a number, or dynamic"),
        (["--batch", "0"], "'0' is no batch size"),
        (["--format", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_words_that_are_no_numbers_show_the_usage(
    words: list[str], message: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as end:
        run("export", "a", "b", "--format", "onnx", *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
