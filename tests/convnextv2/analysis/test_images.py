"""Images for looking at a model: which ones of a folder, and what is cut out of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnextv2.analysis.images import Views, center_view, open_images, require_rgb
from convnextv2.data.collection import DataError


def save(path: Path, value: int, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_flat_and_nested_folders_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a/x.png", "a/deep/y.PNG", "c/z.jpg"):
        save(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_images(tmp_path, max_images=10)
    assert source.files == ("a/deep/y.PNG", "a/x.png", "b.png", "c/z.jpg")


def test_a_limit_spreads_over_all_classes(tmp_path: Path) -> None:
    for label in "abcd":
        for number in range(5):
            save(tmp_path / label / f"{number}.png", 0)
    assert open_images(tmp_path, max_images=4).files == ("a/0.png", "b/0.png", "c/0.png", "d/0.png")
    assert len(set(open_images(tmp_path, max_images=13).files)) == 13


def test_a_folder_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image folder .*gone does not exist"):
        open_images(tmp_path / "gone", 1)
    with pytest.raises(DataError, match=r"no images under .*; read are \.apng, \.bmp"):
        open_images(tmp_path, 1)
    save(tmp_path / "one.png", 0)
    with pytest.raises(DataError, match=r"one\.png is a file; give the folder it lies in"):
        open_images(tmp_path / "one.png", 1)
    with pytest.raises(DataError, match="max_images = 0 leaves no images"):
        open_images(tmp_path, 0)


@pytest.mark.parametrize(
    ("given", "asked", "kept"),
    [
        # (height, width) of image and view; (top, bottom, left, right) of the box.
        ((20, 40), (10, 10), (0, 20, 10, 30)),
        ((40, 20), (10, 10), (10, 30, 0, 20)),
        ((40, 40), (10, 20), (10, 30, 0, 40)),
        ((8, 8), (16, 16), (0, 8, 0, 8)),
    ],
)
def test_a_view_is_the_largest_central_box(
    given: tuple[int, int], asked: tuple[int, int], kept: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = kept
    image = np.zeros((*given, 3), np.uint8)
    image[top:bottom, left:right] = 200
    assert (center_view(image, asked) == 200).all()
    assert center_view(image, asked).shape == (*asked, 3)
    # Nothing of the box is missing: its corners, marked, come through.
    image[top : top + 2, left : left + 2] = 0
    assert center_view(image, asked)[0, 0, 0] < 150


def test_batches_have_one_size_and_the_last_may_be_smaller(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / f"{number}.png", 10 * number, size=(20 + number, 30 - number))
    views = Views(open_images(tmp_path, 5), (8, 16), batch_size=2)
    batches = list(views)
    assert [tuple(batch.shape) for batch in batches] == [
        (2, 8, 16, 3),
        (2, 8, 16, 3),
        (1, 8, 16, 3),
    ]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert views.shown == [f"{number}.png" for number in range(5)]
    assert views.skipped == []


def test_what_cannot_be_decoded_is_skipped_and_named(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / f"{number}.png", 10 * number)
    for number in (1, 3):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    views = Views(open_images(tmp_path, 4), (8, 8), batch_size=2)
    assert torch.cat(list(views))[:, 0, 0, 0].tolist() == [0, 20]
    assert views.shown == ["0.png", "2.png"]
    assert ["1.png" in reason or "3.png" in reason for reason in views.skipped] == [True, True]


def test_not_a_single_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 1 images can be read: .*0\.png"):
        list(Views(open_images(tmp_path, 4), (8, 8), batch_size=2))


def test_images_are_rgb() -> None:
    require_rgb(3)
    with pytest.raises(ValueError, match="read as RGB, this model takes 12 channels"):
        require_rgb(12)
