"""Models from weight files alone: whatever was saved is built again as it was."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convnextv2.analysis.models import read_classifier, read_encoder, read_fcmae
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.sizes import DECODER_UNITS
from convnextv2.weights import WeightsError


def saved(model: nn.Module, path: Path) -> Path:
    """Save with every parameter random: none may be what an initialisation would make it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), path)
    return path


def odd_encoder(num_classes: int = 0) -> ConvNeXtV2:
    """A geometry that no size has."""
    return ConvNeXtV2(
        depths=(1, 2, 1, 3), dims=(4, 6, 8, 10), num_classes=num_classes, in_channels=5,
        stem_stride=2,
    )  # fmt: skip


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fcmae(decoder: str = "convnext", depth: int = 2, **options: object) -> FCMAE:
    return FCMAE.from_size(
        "pocket", image_size=32, patch_size=8, stem_stride=1, decoder=decoder, decoder_dim=32,
        decoder_depth=depth, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_classifier_of_any_geometry_comes_back(tmp_path: Path) -> None:
    model = odd_encoder(num_classes=3)
    path = saved(model, tmp_path / "model.safetensors")
    read = read_classifier(path)
    assert same(read, model)
    assert not read.training
    images = torch.randn(2, 5, 32, 48)
    torch.testing.assert_close(read(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["encoder", "classifier", "autoencoder"])
def test_any_file_has_an_encoder(kind: str, tmp_path: Path) -> None:
    models: dict[str, ConvNeXtV2 | FCMAE] = {
        "encoder": odd_encoder(),
        "classifier": odd_encoder(num_classes=3),
        "autoencoder": FCMAE(odd_encoder(), image_size=32, patch_size=16, decoder_dim=8),
    }
    model = models[kind]
    encoder = read_encoder(saved(model, tmp_path / "model.safetensors"))
    inner = model.encoder if isinstance(model, FCMAE) else model
    assert encoder.head is None
    torch.testing.assert_close(
        encoder.features(torch.ones(1, 5, 32, 32)), inner.features(torch.ones(1, 5, 32, 32))
    )


@pytest.mark.parametrize("decoder", DECODER_UNITS)
def test_an_autoencoder_comes_back_with_its_decoder(decoder: str, tmp_path: Path) -> None:
    model = fcmae(decoder)
    read = read_fcmae(saved(model, tmp_path / "fcmae.safetensors"), image_size=(32, 32))
    assert same(read, model)
    images, mask = torch.randn(2, 3, 32, 32), torch.tensor([[1, 0] * 8, [0, 1] * 8])
    torch.testing.assert_close(
        read(images, mask).prediction, model.eval()(images, mask).prediction, rtol=0, atol=0
    )


def test_what_shapes_do_not_tell_has_defaults_and_can_be_given(tmp_path: Path) -> None:
    path = saved(fcmae(), tmp_path / "fcmae.safetensors")
    model = read_fcmae(path)
    assert (model.patch_size, model.image_size, model.norm_pix_loss) == (8, (56, 56), True)
    model = read_fcmae(path, patch_size=16, norm_pix_loss=False)
    assert (model.patch_size, model.image_size, model.norm_pix_loss) == (16, (112, 112), False)
    assert read_fcmae(path, image_size=(64, 32)).image_size == (64, 32)
    with pytest.raises(ValueError, match=r"image height 60 is no multiple of patch_size 8"):
        read_fcmae(path, image_size=(60, 60))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (odd_encoder(3), "it is a classifier, whose decoder was dropped before fine-tuning"),
        (odd_encoder(), r"it is an encoder alone, as are the published \*_fcmae\.pt files"),
    ],
)
def test_a_file_without_decoder_says_why(model: nn.Module, why: str, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"model\.safetensors has no decoder .*: {why}"):
        read_fcmae(path)


def test_a_decoder_without_mask_token_is_none(tmp_path: Path) -> None:
    state = fcmae().state_dict()
    del state["mask_token"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="has no decoder"):
        read_fcmae(tmp_path / "model.safetensors")


def test_an_encoder_cannot_classify(tmp_path: Path) -> None:
    path = saved(fcmae(), tmp_path / "fcmae.safetensors")
    with pytest.raises(WeightsError, match=r"fcmae\.safetensors has no classifier, only an enc"):
        read_classifier(path)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(3)},
        {"downsample_layers.0.0.weight": torch.zeros(4, 3, 4, 4)},
        {"head.weight": torch.zeros(3, 4)},
    ],
)
def test_foreign_weights_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors"):
        read_encoder(tmp_path / "other.safetensors")


def test_a_file_that_lacks_a_part_is_not_filled_up_with_noise(tmp_path: Path) -> None:
    state = odd_encoder(3).state_dict()
    del state["stages.1.1.grn.gamma"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing \(1\):\n    stages\.1\.1\.grn\.gamma"):
        read_classifier(tmp_path / "model.safetensors")
