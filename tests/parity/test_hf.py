"""Our classifiers against Hugging Face's ConvNeXt V2 with the same weights, both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model

from convnextv2 import sizes
from convnextv2.encoder import ConvNeXtV2
from convnextv2.weights import convert, encoder_of, inspect, load, read, write
from tests.convnextv2.weights.made_weights import fcmae_state
from tests.convnextv2.weights.test_weights_dialects import assert_same
from tests.parity.models import CLASSES, SIZES, classifier, images


def assert_same_logits(model: ConvNeXtV2, reference: Any, size: str, tolerance: float) -> None:
    for batch in images(size, next(model.parameters()).dtype):
        with torch.inference_mode():
            ours, theirs = model(batch), reference(batch).logits
        # Large enough that the tolerance says something.
        assert ours.std() > 0.3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow if s == "huge" else ()) for s in SIZES]
)
def test_logits_equal_hugging_faces(size: str) -> None:
    """Of a model built by its own configuration, of which the final norm's epsilon is set only."""
    model = classifier(size)
    config = ConvNextV2Config(
        hidden_sizes=list(sizes.SIZES[size].dims),
        depths=list(sizes.SIZES[size].depths),
        num_labels=CLASSES,
        layer_norm_eps=1e-6,
    )
    with torch.device("meta"):
        reference = ConvNextV2ForImageClassification(config).eval()
    # The same memory: Huge is 2.6 GB.
    reference.load_state_dict(convert(model.state_dict(), to="hf"), strict=True, assign=True)
    assert_same_logits(model, reference, size, 1e-5)


@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"),
    [
        ("atto", torch.float32, 1e-5),
        ("tiny", torch.float32, 1e-5),
        # Tells an epsilon of 1e-12 (the default) from one of 1e-6.
        ("atto", torch.float64, 1e-11),
    ],
)
def test_a_written_folder_is_loaded_whole(
    size: str, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    model = classifier(size, dtype)
    write(model.state_dict(), tmp_path / "folder", to="hf")
    reference, report = ConvNextV2ForImageClassification.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert {what: list(names) for what, names in report.items() if names} == {}
    assert reference.config.num_labels == CLASSES
    assert reference.dtype == dtype
    assert not reference.training
    assert_same_logits(model, reference, size, tolerance)


def test_other_stems_channels_and_precisions_are_in_the_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=2, in_channels=5, stem_stride=2).eval()
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    write(state, tmp_path / "folder", to="hf")
    reference = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "folder")
    assert reference.dtype == torch.bfloat16
    batch = torch.randn(2, 5, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(reference.float()(batch).logits, model(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", ["atto", "tiny"])
def test_their_own_folder_is_read_exactly(size: str, tmp_path: Path) -> None:
    written = classifier(size)
    write(written.state_dict(), tmp_path / "ours", to="hf")
    reference = ConvNextV2ForImageClassification.from_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    found = inspect(tmp_path / "theirs")
    assert (found.dialect, found.geometry.size) == ("hf", size)
    assert (found.geometry.num_classes, found.dtypes) == (CLASSES, ["float32"])
    assert_same(found.state, written.state_dict())


def test_a_base_model_of_theirs_is_an_encoder_with_final_norm(tmp_path: Path) -> None:
    config = ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1])
    reference = ConvNextV2Model(config).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    model = ConvNeXtV2(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), num_classes=0).eval()
    state = read(tmp_path)
    load(model, {name: value for name, value in state.items() if not name.startswith("norm.")})
    batch = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        theirs = reference(batch).last_hidden_state
        torch.testing.assert_close(model(batch), theirs, rtol=1e-5, atol=1e-5)


def test_the_encoder_of_a_pretraining_is_their_base_model(tmp_path: Path) -> None:
    state = fcmae_state()
    write(state, tmp_path / "folder", to="hf")
    reference, report = ConvNextV2Model.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"layernorm.weight", "layernorm.bias"}
    assert not report["unexpected_keys"]
    model = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=0).eval()
    load(model, encoder_of(state))
    batch = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        theirs = reference(batch).last_hidden_state
        torch.testing.assert_close(model(batch), theirs, rtol=1e-5, atol=1e-5)
