"""The contact sheet: every image of a batch is on it, and says what it is."""

import numpy as np
import pytest
import torch

from convnextv2.data.loading.contact_sheet import CAPTION, MARGIN, contact_sheet
from convnextv2.tasks.batch import Batch

SIDE = 48
CLASSES = ("cat", "dog", "a class of a very long name")


def a_batch(labels: list[int], coefficients: list[float] | None = None) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
    return Batch(
        images=torch.from_numpy(pixels),
        labels=torch.tensor(labels),
        indices=torch.arange(len(labels)),
        epoch=0,
        coefficients=None if coefficients is None else torch.tensor(coefficients),
    )


def tile(sheet: np.ndarray, number: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of an image on the sheet, and of the caption under it."""
    left = MARGIN + number % columns * (SIDE + MARGIN)
    top = MARGIN + number // columns * (SIDE + CAPTION + MARGIN)
    column = sheet[:, left : left + SIDE]
    return column[top : top + SIDE], column[top + SIDE : top + SIDE + CAPTION]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 3, 2)])
def test_every_image_of_the_batch_is_on_the_sheet(count: int, columns: int, rows: int) -> None:
    batch = a_batch([0] * count)
    sheet = np.asarray(contact_sheet(batch, CLASSES))
    height, width = rows * (SIDE + CAPTION + MARGIN), columns * (SIDE + MARGIN)
    assert sheet.shape == (height + MARGIN, width + MARGIN, 3)
    for number in range(count):
        pixels, _ = tile(sheet, number, columns)
        assert (pixels == batch.images[number].numpy()).all()


def test_captions_tell_the_classes_apart_and_stay_under_their_image() -> None:
    sheet = np.asarray(contact_sheet(a_batch([0, 1, 2, -1]), CLASSES))
    captions = [tile(sheet, number, 2)[1] for number in range(4)]
    assert all((caption < 128).any() for caption in captions)
    for one in range(4):
        for other in range(one):
            assert (captions[one] != captions[other]).any()
    assert (sheet[:, -MARGIN:] == 255).all()
    assert (sheet[:, MARGIN + SIDE : MARGIN + SIDE + MARGIN] == 255).all()


def test_what_is_mixed_in_is_told_with_its_share() -> None:
    plain = np.asarray(contact_sheet(a_batch([0, 1]), CLASSES))
    mixed = np.asarray(contact_sheet(a_batch([0, 1], [0.75, 0.5]), CLASSES))
    other_share = np.asarray(contact_sheet(a_batch([0, 1], [0.25, 0.5]), CLASSES))
    for number, changes in ((0, True), (1, False)):
        caption = tile(mixed, number, 2)[1]
        assert (caption != tile(plain, number, 2)[1]).any()
        assert (caption != tile(other_share, number, 2)[1]).any() == changes
