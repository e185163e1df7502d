"""`convnextv2 data sample`: the picture shows what training would see."""

from pathlib import Path

import numpy as np
import pytest

from convnextv2.data.loading.contact_sheet import CAPTION, MARGIN
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection
from tests.pipelines.commands.user import image_of, run, take_photos

pytestmark = pytest.mark.usefixtures("_own_signals")
SIDE = 32
SMALL = ("--set", f"model.image_size={SIDE}", "--set", "model.patch_size=32")
PLAIN = ("--set", "finetune.augment.rand_augment=0", "--set", "finetune.augment.random_erasing=0")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    photos = root / "photos" / "train"
    photos.mkdir(parents=True)
    take_photos(photos)
    (photos / "broken.jpg").unlink()
    source, selection = open_selected(photos.parent, Selection())
    write_collection(source, "photos", root / "shards", selection, WriteSettings())
    return root / "shards"


def test_the_same_call_gives_the_same_picture_and_another_epoch_another(
    shards: Path, tmp_path: Path
) -> None:
    pictures = []
    for name, epoch in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.png"
        assert run("data", "sample", shards, "--output", path, "--epoch", epoch, *SMALL) == 0
        pictures.append(image_of(path))
    # Five images: three in a row.
    assert pictures[0].shape == (2 * (SIDE + CAPTION + MARGIN) + MARGIN, 3 * 36 + MARGIN, 3)
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


def test_settings_change_what_is_seen(shards: Path, tmp_path: Path) -> None:
    augmented, plain = tmp_path / "augmented.png", tmp_path / "plain.png"
    erasing = ("--set", "finetune.augment.random_erasing=1")
    assert run("data", "sample", shards, "--output", augmented, *SMALL, *erasing) == 0
    assert run("data", "sample", shards, "--output", plain, *SMALL, *PLAIN) == 0
    assert (image_of(augmented) != image_of(plain)).any()


def test_mixing_takes_pairs(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "mixed.png"
    mixing = ("--set", "finetune.augment.mixup=0.8")
    assert run("data", "sample", shards, "--output", path, *SMALL, *mixing) == 0
    assert "4 images" in capsys.readouterr().out
    assert (np.ptp(image_of(path)[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]) > 0).all()


def test_a_stage_has_its_own_image_size(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    preset = ("--preset", "imagenet22k-nano", "--stage", "finetune", "--count", 1)
    larger = ("--set", "finetune.image_size=64")
    assert run("data", "sample", shards, "--output", path, *preset, *SMALL, *larger) == 0
    assert image_of(path).shape[0] == 64 + CAPTION + 2 * MARGIN


def test_a_stage_the_preset_has_not_is_refused(shards: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("data", "sample", shards, "--preset", "linear-probe-atto") == 1
    assert (
        "linear-probe-atto has no finetune; --stage pretrain or linear_probe would work"
        in capsys.readouterr().err
    )


def test_a_folder_that_holds_no_shards_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("data", "sample", tmp_path, "--output", tmp_path / "sheet.png") == 1
    assert f"{tmp_path} has no manifest.json" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
