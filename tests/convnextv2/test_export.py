"""Export: another runtime computes what the model computes, or there is no file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from convnextv2 import MissingExtra, export
from convnextv2.encoder import ConvNeXtV2
from convnextv2.export import ExportError, Outputs, export_onnx, export_torch


def classifier(size: str = "pocket", num_classes: int = 5, **options: Any) -> ConvNeXtV2:
    """Every parameter random: GRN's zeros would hide what is wrong with it."""
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size(size, num_classes=num_classes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def photos(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(99))


def onnx_logits(path: Path, images: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(["logits"], {"images": images.numpy()})[0]
    return result


@pytest.mark.parametrize(("size", "height", "width"), [("atto", 224, 224), ("pocket", 64, 96)])
def test_onnx_computes_the_models_logits_for_any_batch(
    size: str, height: int, width: int, tmp_path: Path
) -> None:
    model = classifier(size)
    found = export_onnx(model, tmp_path / "deep" / "model.onnx", (height, width))
    assert found <= 1e-4
    for batch in (1, 3, 4):
        images = photos(batch, height, width)
        with torch.no_grad():
            expected = model(images)
        assert expected.abs().max() > 0.01
        got = onnx_logits(tmp_path / "deep" / "model.onnx", images)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.onnx"]


SIZES = [(64, 64), (224, 224), (96, 250), (65, 127)]


def test_onnx_takes_images_of_any_size(tmp_path: Path) -> None:
    model = classifier()
    assert export_onnx(model, tmp_path / "model.onnx") <= 1e-4
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for batch, size in enumerate(SIZES, start=1):
        images = photos(batch, *size)
        with torch.no_grad():
            expected = model(images)
        got = onnx_logits(tmp_path / "model.onnx", images)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_torch_program_takes_images_of_any_size(tmp_path: Path) -> None:
    model = classifier()
    assert export_torch(model, tmp_path / "model.pt2") <= 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch, size in enumerate(SIZES, start=1):
        images = photos(batch, *size)
        torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("outputs", "num_classes"), [("features", 5), ("stages", 0)])
def test_feature_maps_are_those_of_the_encoder(
    outputs: Outputs, num_classes: int, tmp_path: Path
) -> None:
    """Of an encoder alone, and of a classifier, whose norm and head are left out."""
    model = classifier(num_classes=num_classes)
    export_onnx(model, tmp_path / "maps.onnx", outputs=outputs)
    export_torch(model, tmp_path / "maps.pt2", outputs=outputs)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "maps.onnx"), providers=["CPUExecutionProvider"]
    )
    program = torch.export.load(tmp_path / "maps.pt2").module()
    images = photos(3, 100, 160)
    with torch.no_grad():
        expected = [x.permute(0, 3, 1, 2) for x in model.stage_features(images)]
        programs = program(images)
    names = ["stage1", "stage2", "stage3", "stage4"] if outputs == "stages" else ["features"]
    assert [output.name for output in session.get_outputs()] == names
    assert expected[-1].shape == (3, 128, 3, 5)
    found = session.run(None, {"images": images.numpy()})
    for theirs, programmed, ours in zip(found, programs, expected[-len(names) :], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
        torch.testing.assert_close(programmed, ours, rtol=0, atol=1e-4)


def test_an_encoder_has_no_logits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no logits; features or stages would work"):
        export_torch(classifier(num_classes=0), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_goes_in_and_out(tmp_path: Path) -> None:
    model = classifier()
    for size, batch, shown in (
        ((32, 64), None, ["batch", 3, 32, 64]),
        ((32, 64), 2, [2, 3, 32, 64]),
    ):
        path = tmp_path / f"{batch}.onnx"
        export_onnx(model, path, size, batch=batch)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (images,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.shape) == ("images", shown)
        assert (logits.name, logits.shape) == ("logits", [shown[0], 5])


@pytest.mark.parametrize("name", ["model.pt2", "weights"])
def test_a_torch_program_comes_back(name: str, tmp_path: Path) -> None:
    model = classifier(stem_stride=1, in_channels=3)
    assert export_torch(model, tmp_path / name, (16, 24)) <= 1e-4
    with (tmp_path / name).open("rb") as file:
        program = torch.export.load(file).module()
    for batch in (1, 3):
        images = photos(batch, 16, 24)
        torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_fixed_batch_is_fixed(tmp_path: Path) -> None:
    model = classifier(stem_stride=1)
    export_torch(model, tmp_path / "one.pt2", (16, 16), batch=1)
    program = torch.export.load(tmp_path / "one.pt2").module()
    images = photos(1, 16, 16)
    torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-4)
    with pytest.raises((AssertionError, RuntimeError)):
        program(photos(2, 16, 16))


def test_weights_too_large_for_one_file_lie_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "ONNX_LIMIT", 100)
    model = classifier()
    export_onnx(model, tmp_path / "model.onnx", (32, 32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * weights
    images = photos(2, 32, 32)
    with torch.no_grad():
        expected = model(images)
    np.testing.assert_allclose(
        onnx_logits(tmp_path / "model.onnx", images), expected, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_what_computes_something_else_is_not_kept(
    wrong: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, path = classifier(), tmp_path / "model.onnx"
    path.write_bytes(b"an earlier one")
    monkeypatch.setattr(export, "_onnxruntime", lambda path: lambda images: model(images) + wrong)
    with pytest.raises(ExportError, match=r"off by (0\.0002|nan) .* at most 1e-04 is accepted"):
        export_onnx(model, path, (32, 32))
    assert path.read_bytes() == b"an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "convnextv2.find_spec", lambda name: None if name == "onnxscript" else "there"
    )
    with pytest.raises(MissingExtra, match=r"needs onnxscript: pip install 'convnextv2\[export\]'"):
        export_onnx(classifier(), tmp_path / "model.onnx", (32, 32))
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="call eval"):
        export_torch(classifier().train(), tmp_path / "model.pt2", (32, 32))
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 30x64 is smaller than the total stride 32"):
        export_torch(classifier(), tmp_path / "model.pt2", (30, 64))
