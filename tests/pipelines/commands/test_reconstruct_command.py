"""`convnextv2 reconstruct` as a user runs it: what is written, and what is said."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convnextv2.fcmae import FCMAE
from convnextv2.weights import Evaluation, Metadata
from tests.pipelines.commands.user import (
    Page,
    classifier,
    fcmae,
    image_of,
    run,
    saved,
    self_contained,
)

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("_own_signals")


def test_reconstruct_makes_a_page_and_a_sheet(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    weights, output = saved(fcmae(), tmp_path / "fcmae.safetensors"), tmp_path / "new" / "gallery"
    words = ["reconstruct", weights, photos, "--output", output, "--image-size", 32]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 5
    assert [reason for reason in printed["skipped"] if "broken.jpg" in reason] == printed["skipped"]
    assert len(printed["skipped"]) == 1
    assert (printed["image_size"], printed["patch_size"]) == ([32, 32], 8)
    assert 0.3 < printed["loss"] < 30
    assert sorted(path.name for path in output.iterdir()) == ["gallery.html", "gallery.png"]

    page = Page(output / "gallery.html")
    assert self_contained(page)
    names = [f"class {n % 2}/<{n}> & co.png" for n in (0, 2, 4, 1, 3)]
    kinds = ("original", "masked", "predicted")
    assert page.pictures == [f"{kind}, {name}" for name in names for kind in kinds]
    assert all(name in page.text for name in names)
    assert f"{printed['loss']:.3f}" in page.text
    assert "broken.jpg" in page.text

    # Two images in a row, each three tiles of 128: 32 pixels, four times enlarged.
    sheet = image_of(output / "gallery.png")
    assert sheet.shape == (24 + 28 + 3 * 128 + 2 * 6 + 24, 24 + 2 * (3 * 128 + 2 * 6 + 24), 3)
    original, masked, predicted = (
        sheet[52 : 52 + 128 : 4, left : left + 128 : 4] for left in (24, 24 + 134, 24 + 268)
    )
    hidden = (masked == 128).all(axis=-1)
    patches = hidden.reshape(4, 8, 4, 8).all(axis=(1, 3))
    assert patches.sum() == 16 - 6
    np.testing.assert_array_equal(hidden, np.kron(patches, np.ones((8, 8))).astype(bool))
    np.testing.assert_array_equal(predicted[~hidden], original[~hidden])
    assert (predicted[hidden] != original[hidden]).any()

    assert run(*words) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"5 images, loss {printed['loss']:.3f}\n  {output / 'gallery.html'}\n")
    assert "  skipped " in out
    assert (image_of(output / "gallery.png") == sheet).all()
    assert run(*words, "--seed", 1) == 0
    assert (image_of(output / "gallery.png") != sheet).any()


def test_reconstruct_takes_other_sizes_and_fewer_images(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    weights = saved(fcmae(), tmp_path / "fcmae.safetensors")
    words = ["--image-size", "32x64", "--patch-size", 16, "--max-images", 1, "--mask-ratio", 0.25]
    assert run(
        "reconstruct", weights, photos / "class 0", "--output", tmp_path, *words, "--json"
    ) == 0  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["image_size"], printed["patch_size"]) == (1, [32, 64], 16)
    sheet = image_of(tmp_path / "gallery.png")
    assert sheet.shape == (24 + 28 + 64 + 24, 24 + 3 * 128 + 2 * 6 + 24, 3)
    masked = sheet[52 : 52 + 64 : 2, 24 + 134 : 24 + 134 + 128 : 2]
    patches = (masked == 128).all(axis=-1).reshape(2, 16, 4, 16).all(axis=(1, 3))
    assert patches.sum() == 2


def in_the_official_sparse_layout(model: FCMAE) -> dict[str, Tensor]:
    """Names and shapes of the released training code's MinkowskiEngine modules."""
    state = {}
    for name, value in model.state_dict().items():
        if re.match(r"encoder\.downsample_layers\.[1-3]\.0\.", name):
            name = re.sub(r"(weight|bias)$", r"ln.\1", name)
        elif re.match(r"encoder\.(downsample_layers\.[1-3]\.1|stages\.\d\.\d\.dwconv)\.", name):
            if value.ndim == 1:
                value = value[None]
            else:
                # Offsets in the order (column, row), the kernel's first dimension.
                offsets = value.transpose(2, 3).flatten(2).permute(2, 1, 0)
                value = offsets[:, 0] if "dwconv" in name else offsets
                name = name.replace("weight", "kernel")
        elif ".grn." in name and name.startswith("encoder."):
            value = value[0, 0]
        elif match := re.match(r"encoder\.stages\.\d\.\d\.(norm|pwconv\d)\.", name):
            inner = "ln" if match[1] == "norm" else "linear"
            name = re.sub(r"(weight|bias)$", rf"{inner}.\1", name)
        state[name] = value.contiguous()
    return state


def test_reconstruct_reads_the_official_codes_training_checkpoints(
    photos: Path, tmp_path: Path
) -> None:
    model = fcmae()
    ours = saved(model, tmp_path / "fcmae.safetensors")
    theirs = tmp_path / "checkpoint-799.pth"
    torch.save({"model": in_the_official_sparse_layout(model), "epoch": 799}, theirs)
    for weights, output in ((ours, "ours"), (theirs, "theirs")):
        words = ["--output", tmp_path / output, "--image-size", 32]
        assert run("reconstruct", weights, photos, *words) == 0
    first, second = (image_of(tmp_path / name / "gallery.png") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classifier.safetensors"], r"classifier\.safetensors has no decoder .* it is a classif"),
        (["encoder.safetensors"], r"encoder\.safetensors has no decoder .* were converted from"),
        (["none.safetensors"], r"none\.safetensors does not exist"),
        (["fcmae.safetensors", "--mask-ratio", "1"], r"mask ratio 1\.0 is not between 0 and 1"),
        (["fcmae.safetensors", "--image-size", "30"], r"image height 30 is no multiple of patch"),
        (["fcmae.safetensors", "--patch-size", "12"], r"patch_size 12 is no multiple of the enc"),
        (["fcmae.safetensors", "--max-images", "0"], r"max_images = 0 leaves no images"),
    ],
)
def test_reconstruct_says_what_is_wrong_and_writes_nothing(
    words: list[str], message: str, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    saved(fcmae(), tmp_path / "fcmae.safetensors")
    saved(fcmae().encoder, tmp_path / "encoder.safetensors")
    saved(classifier(), tmp_path / "classifier.safetensors")
    output = tmp_path / "gallery"
    assert run("reconstruct", tmp_path / words[0], photos, "--output", output, *words[1:]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(rf"^error: .*{message}", err, re.MULTILINE)
    assert not output.exists()


def test_pictures_are_normalised_as_the_weights_say(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    """As those of RGB of 16 bits do; without a word it is by ImageNet's mean and deviation."""
    usual = Evaluation.usual(32)
    own = dataclasses.replace(usual, mean=(0.1,) * 3, std=(0.9,) * 3)
    losses = []
    for name, known in (("none", None), ("usual", usual), ("own", own)):
        metadata = Metadata(evaluation=known)
        weights = saved(fcmae(), tmp_path / f"{name}.safetensors", metadata)
        words = ["reconstruct", weights, photos, "--output", tmp_path / name, "--image-size", 32]
        assert run(*words, "--raw-pixels", "--json") == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1]
    assert losses[2] != pytest.approx(losses[0], rel=0.01)
