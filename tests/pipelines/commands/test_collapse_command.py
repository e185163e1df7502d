"""`convnextv2 collapse` as a user runs it: what is written, and what is said."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from convnextv2.weights import Evaluation, Metadata
from tests.convnextv2.analysis.collapsed import collapse_block
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
BLOCKS = ["stages.0.0", "stages.1.0", "stages.2.0", "stages.2.1", "stages.3.0"]


def test_collapse_puts_two_checkpoints_side_by_side(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    healthy = saved(fcmae(), tmp_path / "healthy.safetensors")
    collapsed = classifier()
    collapse_block(collapsed, "stages.2.1")
    ill = saved(collapsed, tmp_path / "ill.safetensors")
    output = tmp_path / "out"
    words = ["collapse", healthy, ill, "--images", photos, "--output", output, "--image-size", 64]
    assert run(*words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((output / "collapse.json").read_text())
    assert (printed["images"], printed["image_size"]) == (5, [64, 64])
    first, second = printed["checkpoints"]
    assert [c["weights"] for c in (first, second)] == [str(healthy), str(ill)]
    for checkpoint in (first, second):
        assert [block["block"] for block in checkpoint["blocks"]] == BLOCKS
        assert [block["channels"] for block in checkpoint["blocks"]] == [64, 128, 256, 256, 512]
        mean = np.mean([block["distance"] for block in checkpoint["blocks"]])
        assert checkpoint["mean_distance"] == pytest.approx(mean)
    assert second["blocks"][3]["distance"] == pytest.approx(0, abs=1e-5)
    assert min(block["distance"] for block in first["blocks"]) > 0.1

    assert sorted(path.name for path in output.iterdir()) == [
        "activations.png", "collapse.html", "collapse.json", "collapse.png",
    ]  # fmt: skip
    assert image_of(output / "collapse.png").shape == (544, 1184, 3)
    # A column for the images and one for each checkpoint, a row for each of three images.
    assert image_of(output / "activations.png").shape == (1600, 1536, 3)

    page = Page(output / "collapse.html")
    assert self_contained(page)
    labels = ("image", "healthy.safetensors,", "ill.safetensors,")
    assert page.pictures == [f"{label} {row}" for row in (1, 2, 3) for label in labels]
    for text in ("healthy.safetensors", "ill.safetensors", "broken.jpg", *BLOCKS):
        assert text in page.text
    for block in (*first["blocks"], *second["blocks"]):
        assert f"{block['distance']:.4f}" in page.text

    assert run(*words) == 0
    assert re.search(r"stages\.2\.1 +0\.0000 +0\.0% dead", capsys.readouterr().out)


def test_collapse_of_one_checkpoint_without_signal(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = classifier()
    with torch.no_grad():
        for name in ("pwconv1.weight", "pwconv1.bias", "grn.beta"):
            model.get_parameter(f"stages.1.0.{name}").zero_()
    weights = saved(model, tmp_path / "model.safetensors")
    words = ["--max-images", 2, "--block", "stages.1.0", "--image-size", "32x64"]
    assert run("collapse", weights, "--images", photos, "--output", tmp_path, *words) == 0
    assert re.search(r"stages\.1\.0 +– +100\.0% dead", capsys.readouterr().out)
    (checkpoint,) = json.loads((tmp_path / "collapse.json").read_text())["checkpoints"]
    assert checkpoint["blocks"][1]["distance"] is None
    assert checkpoint["mean_distance"] > 0
    assert image_of(tmp_path / "activations.png").shape[1] == 2 * 512


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--block", "stages.2.7"], r"a\.safetensors: there is no block 'stages\.2\.7'; choose"),
        (["--image-size", "30"], r"image 30x30 is smaller than the total stride 32"),
        (["--images", "nowhere"], r"image folder nowhere does not exist"),
    ],
)
def test_collapse_says_what_is_wrong_and_writes_nothing(
    words: list[str], message: str, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    weights, output = saved(classifier(), tmp_path / "a.safetensors"), tmp_path / "out"
    assert run("collapse", weights, "--images", photos, "--output", output, *words) == 1
    assert re.search(rf"^error: .*{message}", capsys.readouterr().err, re.MULTILINE)
    assert not output.exists()


def test_pictures_are_normalised_as_the_weights_say(photos: Path, tmp_path: Path) -> None:
    """As those of RGB of 16 bits do; without a word it is by ImageNet's mean and deviation."""
    usual = Evaluation.usual(64)
    own = dataclasses.replace(usual, mean=(0.1,) * 3, std=(0.9,) * 3)
    distances = []
    for name, known in (("none", None), ("usual", usual), ("own", own)):
        metadata = Metadata(evaluation=known)
        weights = saved(fcmae(), tmp_path / f"{name}.safetensors", metadata)
        words = ["collapse", weights, "--images", photos, "--output", tmp_path / name]
        assert run(*words, "--image-size", 64) == 0
        found = json.loads((tmp_path / name / "collapse.json").read_text())
        distances.append(found["checkpoints"][0]["mean_distance"])
    assert distances[0] == distances[1]
    assert distances[2] != pytest.approx(distances[0], rel=1e-4)
