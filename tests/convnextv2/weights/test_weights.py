"""Loading weights: what does not fit is explained, what fits comes back bit for bit.

Dialects are in test_weights_dialects.py, containers in test_weights_files.py.
"""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.weights import WeightsError, encoder_of, load, read


def classifier(seed: int = 0, num_classes: int = 3) -> ConvNeXtV2:
    torch.manual_seed(seed)
    return ConvNeXtV2.from_size("pocket", num_classes=num_classes, stem_stride=1)


def fcmae(seed: int = 0) -> FCMAE:
    torch.manual_seed(seed)
    return FCMAE.from_size("pocket", image_size=16, patch_size=8, stem_stride=1, decoder_dim=8)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_file_brings_back_the_model(tmp_path: Path) -> None:
    saved, other = classifier(0), classifier(1)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    assert not same(other.state_dict(), saved.state_dict())
    load(other, read(tmp_path / "model.safetensors"))
    assert same(other.state_dict(), saved.state_dict())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weight file .*gone\.safetensors does not exist"):
        read(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(classifier().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is no readable safetensors file"):
        read(path)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    model = classifier(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = classifier(1).state_dict()
    state["stages.9.0.norm.weight"] = state.pop("stages.0.0.norm.weight")
    state["head.weight"], state["head.bias"] = torch.zeros(7, 128), torch.zeros(7)

    with pytest.raises(WeightsError) as caught:
        load(model, state)

    lines = str(caught.value).splitlines()
    assert lines == [
        "these weights are of another model:",
        "  classes: they have 7, the model 3",
        "  missing (1):",
        "    stages.0.0.norm.weight",
        "  unexpected (1):",
        "    stages.9.0.norm.weight",
        "  another shape (2):",
        "    head.weight is (7, 128), the model has (3, 128)",
        "    head.bias is (7,), the model has (3,)",
    ]
    assert same(model.state_dict(), before)


def test_of_another_size_the_first_names_are_listed_and_the_rest_counted() -> None:
    with torch.device("meta"):
        other = ConvNeXtV2.from_size("atto", num_classes=3).state_dict()
    with pytest.raises(WeightsError) as caught:
        load(classifier(), other)
    message = str(caught.value)
    assert "\n  size: they are atto, the model is pocket\n" in message
    assert re.search(r"another shape \(\d+\):\n(    .*\n){8}    … and \d+ more", message)


def test_of_the_same_size_every_name_is_listed() -> None:
    with pytest.raises(WeightsError) as caught:
        load(fcmae(), classifier().state_dict())
    message = str(caught.value)
    assert "  classes: they have 3, the model none\n" in message
    assert "  decoder: they have none, the model convnext\n" in message
    missing = message.partition("  missing (")[2].partition("  unexpected (")[0].splitlines()[1:]
    unexpected = message.partition("  unexpected (")[2].splitlines()[1:]
    assert {line.strip() for line in missing} == fcmae().state_dict().keys()
    assert {line.strip() for line in unexpected} == classifier().state_dict().keys()


def test_models_that_are_no_convnext_are_compared_by_name() -> None:
    with pytest.raises(WeightsError) as caught:
        load(torch.nn.Linear(2, 2), {"bias": torch.zeros(3)})
    assert str(caught.value).splitlines() == [
        "these weights are of another model:",
        "  missing (1):",
        "    weight",
        "  another shape (1):",
        "    bias is (3,), the model has (2,)",
    ]


def test_only_what_may_be_missing_may_be_missing() -> None:
    model, donor = classifier(0, num_classes=3), classifier(1, num_classes=3)
    head = model.head
    assert head is not None
    kept = head.weight.clone()
    state = {
        name: value
        for name, value in donor.state_dict().items()
        if not name.startswith(("norm.", "head."))
    }
    with pytest.raises(WeightsError, match=r"missing \(4\)"):
        load(model, state)
    with pytest.raises(WeightsError, match=r"missing \(2\)"):
        load(model, state, may_miss=("head.",))
    load(model, state, may_miss=("norm.", "head."))
    assert torch.equal(head.weight, kept)
    assert torch.equal(model.stages[2][1].pwconv1.weight, state["stages.2.1.pwconv1.weight"])  # type: ignore[index]


def test_the_encoder_of_a_pretrained_model_fits_a_classifier() -> None:
    pretrained, model = fcmae(), classifier(1)
    encoder = encoder_of(pretrained.state_dict())
    assert same(encoder, pretrained.encoder.state_dict())
    load(model, encoder, may_miss=("norm.", "head."))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        model.features(images).permute(0, 3, 1, 2), pretrained.encoder(images)
    )


def test_decoder_parts_of_a_dense_file_are_left_out() -> None:
    # The published dense files carry the encoder's names without a prefix.
    pretrained = fcmae()
    dense = {name.removeprefix("encoder."): v for name, v in pretrained.state_dict().items()}
    assert "mask_token" in dense
    assert same(encoder_of(dense), pretrained.encoder.state_dict())
