"""What training takes over from a file: encoder always; norm, head and decoder by stated rules."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convnextv2.encoder import ConvNeXtV2
from convnextv2.weights import Evaluation, Inspection, Metadata, encoder_of, inspect, load
from convnextv2.weights.starting import start_of_autoencoder, start_of_classifier
from convnextv2.weights.state import HEAD_ONLY
from tests.convnextv2.weights.made_weights import (
    State,
    classifier_state,
    encoder_state,
    fcmae_state,
)
from tests.convnextv2.weights.test_weights_dialects import assert_same

CLASSES = ("ant", "bee", "cow", "dog", "eel")


def found(state: State, folder: Path, classes: tuple[str, ...] = ()) -> Inspection:
    known = Metadata(classes=classes, evaluation=Evaluation.usual(64))
    save_file(state, folder / "weights.safetensors", metadata=known.as_entries())
    return inspect(folder / "weights.safetensors")


def test_a_head_of_the_same_classes_is_taken_over(tmp_path: Path) -> None:
    start = start_of_classifier(found(classifier_state(), tmp_path, CLASSES), CLASSES)
    assert_same(start.state, classifier_state())
    assert start.description == "encoder and final norm, and head, whose 5 classes are the same"


def test_rows_of_the_head_go_with_the_names(tmp_path: Path) -> None:
    """Images that count the classes otherwise get the same score for the same name."""
    other = ("eel", "ant", "dog", "cow", "bee")
    start = start_of_classifier(found(classifier_state(), tmp_path, CLASSES), other)
    before, after = (
        ConvNeXtV2(depths=(1, 1, 2, 1), dims=(4, 6, 8, 10), num_classes=5).eval() for _ in range(2)
    )
    load(before, classifier_state())
    load(after, start.state)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        scores = [dict(zip(names, model(images)[0].tolist(), strict=True))
                  for names, model in ((CLASSES, before), (other, after))]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert len(set(scores[0].values())) == 5


@pytest.mark.parametrize(
    ("theirs", "ours", "new_head", "why"),
    [
        ((), CLASSES, False, "its 5 classes have no names in the file"),
        (CLASSES, (*CLASSES[:4], "fox"), False, "its 5 classes are not the 5 of the images"),
        (CLASSES, CLASSES[:4], False, "its 5 classes are not the 4 of the images"),
        (CLASSES, CLASSES, True, "a probe trains its own"),
    ],
)
def test_any_other_head_is_new(
    theirs: tuple[str, ...], ours: tuple[str, ...], new_head: bool, why: str, tmp_path: Path
) -> None:
    start = start_of_classifier(
        found(classifier_state(), tmp_path, theirs), ours, new_head=new_head
    )
    expected = {n: v for n, v in classifier_state().items() if not n.startswith("head.")}
    assert_same(start.state, expected)
    assert start.description == f"encoder and final norm; the head is new ({why})"


@pytest.mark.parametrize("state", [encoder_state(), fcmae_state()], ids=["encoder", "fcmae"])
def test_of_a_pretraining_it_is_the_encoder(state: State, tmp_path: Path) -> None:
    start = start_of_classifier(found(state, tmp_path), CLASSES)
    assert_same(start.state, encoder_of(state))
    assert not any(name.startswith(HEAD_ONLY) for name in start.state)
    assert start.description == "encoder; the head is new (there is none)"


def test_a_decoder_like_ours_is_taken_over(tmp_path: Path) -> None:
    start = start_of_autoencoder(found(fcmae_state(), tmp_path), ("convnext", 32, 2))
    assert_same(start.state, fcmae_state())
    assert start.description == "encoder, decoder and mask token"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (fcmae_state("unet", 64), "the one there is unet, 64 channels, depth 2"),
        (encoder_state(), "there is none"),
        (classifier_state(), "there is none"),
    ],
    ids=["unet", "encoder", "classifier"],
)
def test_any_other_decoder_is_new(state: State, why: str, tmp_path: Path) -> None:
    start = start_of_autoencoder(found(state, tmp_path), ("convnext", 32, 2))
    encoder = {
        f"encoder.{n}": v for n, v in encoder_of(state).items() if not n.startswith(HEAD_ONLY)
    }
    assert_same(start.state, encoder)
    assert start.description == f"encoder; decoder and mask token are new ({why})"


def test_what_a_file_says_comes_back(tmp_path: Path) -> None:
    known = Metadata(
        classes=("Äpfel", 'a "b"', "犬"),
        evaluation=Evaluation(
            image_size=384, crop=None, interpolation="area", mean=(0.5,), std=(0.25,)
        ),
    )
    assert Metadata.of_entries(known.as_entries()) == known
    for entries in (None, {}, {"convnextv2": "{"}, {"convnextv2": '{"evaluation": 3}'}):
        assert Metadata.of_entries(entries) == Metadata()


def test_names_of_another_number_of_classes_are_not_believed(tmp_path: Path) -> None:
    told = found(classifier_state(), tmp_path, CLASSES[:3]).metadata
    assert told == Metadata(evaluation=Evaluation.usual(64))
