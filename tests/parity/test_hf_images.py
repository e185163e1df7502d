"""A written Hugging Face folder from image to class name, against our own evaluation of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    ConvNextV2Backbone,
    pipeline,
)

from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.writing import WriteSettings
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks import IMAGENET_STD, Normalization, Normalize
from convnextv2.weights import Evaluation, Metadata, encoder_of, load, write
from pipelines.config import EvaluateConfig
from pipelines.training.data.transforms import evaluation_view
from tests.convnextv2.data.fixtures.pictures import Pictures
from tests.convnextv2.data.fixtures.pictures import write as write_shards
from tests.convnextv2.weights.made_weights import classifier_state, fcmae_state

# High, wide, square, and smaller than what is cut out.
SHAPES = ((64, 64), (50, 90), (91, 40), (41, 67), (333, 500), (30, 30))
LEVEL = 1 / 255 / min(IMAGENET_STD)
"""One of 256 levels of a pixel, normalised."""
NAMES = ("tench", "goldfish", "shark", "ray", "hen")


PICTURES = Pictures(SHAPES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "val"
    write_shards(PICTURES, folder, WriteSettings(mode="raw"))
    return folder


def as_evaluated(shards: Path, image_size: int, settings: EvaluateConfig) -> Tensor:
    """All pictures (N, 3, H, W), in any order, as our evaluation shows them to the network."""
    view = evaluation_view(image_size, settings)
    loader = BetonLoader(shards, batch_size=len(SHAPES), view=view)
    (batch,) = loader.batches(np.arange(len(SHAPES), dtype=np.uint64))
    return Normalize()(batch.images, torch.float32)


def evaluation(image_size: int, settings: EvaluateConfig) -> Evaluation:
    crop = None if settings.crop_mode == "squash" else settings.crop
    return replace(Evaluation.usual(image_size), crop=crop)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image_size", "settings"),
    [
        (32, EvaluateConfig()),
        (28, EvaluateConfig(crop_mode="center", crop=0.875)),  # 28 / 0.875 is 32.
        (48, EvaluateConfig(crop_mode="center", crop=1.0)),
        (40, EvaluateConfig(crop_mode="squash")),
    ],
    ids=str,
)
def test_its_processor_shows_what_our_evaluation_shows(
    image_size: int, settings: EvaluateConfig, shards: Path, tmp_path: Path
) -> None:
    """To one level of 256, where what is cut off is even. Where it is odd, half a pixel is over:
    we round to the even one as torchvision does, transformers down, so it may see the next pixel.
    """
    metadata = Metadata(evaluation=evaluation(image_size, settings))
    write(classifier_state(), tmp_path / "hf", to="hf", metadata=metadata)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pictures = [Image.fromarray(PICTURES.image(number)) for number in range(len(SHAPES))]
    theirs = processor(pictures, return_tensors="pt")["pixel_values"]
    ours = as_evaluated(shards, image_size, settings)
    # Shards have an order of their own: a picture's partner is the one that is nearest.
    difference = (ours[:, None] - theirs[None]).abs().flatten(2)
    partner = difference.mean(dim=-1).argmin(dim=1)
    assert sorted(partner.tolist()) == list(range(len(SHAPES)))
    found = difference[torch.arange(len(SHAPES)), partner]
    assert found.max() < 1.01 * LEVEL
    assert found.mean() < 0.15 * LEVEL


def test_its_pipeline_names_our_classes(tmp_path: Path) -> None:
    state = classifier_state(num_classes=5)
    state = {name: value / 4 for name, value in state.items()}
    known = Evaluation.usual(64)
    write(state, tmp_path / "hf", to="hf", metadata=Metadata(classes=NAMES, evaluation=known))
    picture = Image.fromarray(PICTURES.image(1))
    classify = pipeline("image-classification", model=str(tmp_path / "hf"), top_k=5)
    told = {each["label"]: each["score"] for each in classify(picture)}

    model = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=5).eval()
    load(model, state)
    images = AutoImageProcessor.from_pretrained(tmp_path / "hf")(picture, return_tensors="pt")
    assert images["pixel_values"].shape == (1, 3, 64, 64)
    with torch.inference_mode():
        (shares,) = F.softmax(model(images["pixel_values"]), dim=1).tolist()
    assert max(shares) - min(shares) > 0.1
    assert told == pytest.approx(dict(zip(NAMES, shares, strict=True)), abs=1e-5)


def test_the_encoder_of_a_pretraining_is_a_backbone(tmp_path: Path) -> None:
    """Its maps are normalised once more, by norms that begin as the identity: their code's."""
    state = fcmae_state()
    write(state, tmp_path / "hf", to="hf", metadata=Metadata(evaluation=Evaluation.usual(64)))
    backbone = ConvNextV2Backbone.from_pretrained(tmp_path / "hf", out_indices=(1, 2, 3, 4)).eval()
    assert backbone.channels == [4, 6, 8, 10]
    images = AutoImageProcessor.from_pretrained(tmp_path / "hf")(
        Image.fromarray(PICTURES.image(2)), return_tensors="pt"
    )["pixel_values"]
    model = ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=0).eval()
    load(model, encoder_of(state))
    with torch.inference_mode():
        theirs = backbone(images).feature_maps
        ours = model.stage_features(images)
    for their, our in zip(theirs, ours, strict=True):
        expected = F.layer_norm(our, our.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(their, expected, rtol=1e-4, atol=1e-4)


def test_auto_backbone_chooses_that_class_but_takes_no_folder(tmp_path: Path) -> None:
    """When transformers learns to take folders, docs/weights.md and the advice can say so."""
    write(fcmae_state(), tmp_path / "hf", to="hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert type(AutoBackbone.from_config(config)) is ConvNextV2Backbone
    with pytest.raises(HFValidationError, match="Repo id must be in the form"):
        AutoBackbone.from_pretrained(str(tmp_path / "hf"))


def test_a_folder_for_other_channels_has_no_processor_until_their_mean_is_known(
    tmp_path: Path,
) -> None:
    state = ConvNeXtV2.from_size("pocket", num_classes=2, in_channels=5).state_dict()
    write(state, tmp_path / "unknown", to="hf")
    assert not (tmp_path / "unknown" / "preprocessor_config.json").exists()
    known = replace(Evaluation.usual(32), mean=(0.5,) * 5, std=(0.2,) * 5)
    write(state, tmp_path / "known", to="hf", metadata=Metadata(evaluation=known))
    assert AutoImageProcessor.from_pretrained(tmp_path / "known").image_mean == (0.5,) * 5


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (5, 8), (5, 16)])
def test_a_processor_of_other_channels_and_bits_normalises_as_training_does(
    tmp_path: Path, channels: int, bits: int
) -> None:
    by = Normalization(tuple(0.3 + 0.05 * c for c in range(channels)), (0.2,) * channels, bits)
    state = ConvNeXtV2.from_size("pocket", num_classes=2, in_channels=channels).state_dict()
    evaluation = Evaluation(
        image_size=32, crop=1.0, interpolation="bicubic", mean=by.mean, std=by.std, bits=bits
    )
    write(state, tmp_path / "hf", to="hf", metadata=Metadata(evaluation=evaluation))
    image = np.random.default_rng(0).integers(0, by.white + 1, (32, 32, channels))
    stored = image.astype(np.uint8 if bits == 8 else np.uint16)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "hf")(
        stored, input_data_format="channels_last", return_tensors="pt"
    )["pixel_values"]
    ours = Normalize(by)(torch.from_numpy(stored)[None], torch.float32)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_grey_picture_stays_one_channel_in_the_processor(tmp_path: Path) -> None:
    state = ConvNeXtV2.from_size("pocket", num_classes=2, in_channels=1).state_dict()
    grey = replace(Evaluation.usual(32), mean=(0.5,), std=(0.2,))
    write(state, tmp_path / "hf", to="hf", metadata=Metadata(evaluation=grey))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    picture = Image.new("L", (48, 40), 128)
    assert processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 1, 32, 32)
