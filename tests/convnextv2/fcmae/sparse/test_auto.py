"""Backend `auto`: what it picks, and that it says so."""

import logging

import pytest
import torch

from convnextv2.fcmae.sparse import Auto, auto, backend_of
from convnextv2.fcmae.sparse.gather import VisiblePatches
from tests.convnextv2.fcmae.small_fcmae import close, masks, noise, small_fcmae

FEW_VISIBLE, MANY_VISIBLE = ({0, 3}, {1, 5}), ({0, 1, 2, 3}, {0, 1, 4, 5})


@pytest.mark.parametrize(
    ("visible", "compiled", "spconv", "chosen"),
    [
        (FEW_VISIBLE, True, True, "gather"),
        (MANY_VISIBLE, True, True, "gather"),
        (FEW_VISIBLE, False, True, "spconv"),
        (FEW_VISIBLE, False, False, "gather"),
        (MANY_VISIBLE, False, True, "gather"),
        (({0, 3}, {1}), True, True, "masked-dense"),
        (({0, 3}, {1}), False, True, "masked-dense"),
    ],
)
def test_the_rule(
    visible: tuple[set[int], ...],
    compiled: bool,
    spconv: bool,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "library", lambda: object() if compiled else None)
    monkeypatch.setattr(auto, "find_spec", lambda name: object() if spconv else None)
    mask = masks(small_fcmae(), *visible).bool()
    name, reason = auto.choose(mask, torch.device("cpu"))
    assert name == chosen
    assert reason


def test_on_a_gpu_the_images_count_not_where_the_masks_are() -> None:
    mask = masks(small_fcmae(), *FEW_VISIBLE).bool()
    name, reason = auto.choose(mask, torch.device("cuda"))
    assert name == "gather"
    assert "GPU" in reason


def test_the_choice_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    model = small_fcmae(backend="auto")
    alike, unlike = masks(model, {0, 3}, {1, 5}), masks(model, {0, 3}, {1})
    with caplog.at_level(logging.INFO, logger="convnextv2"):
        for mask in (alike, alike, unlike, unlike, alike):
            model.encode(noise(model, 2), mask)
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    assert said == [
        "backend 'auto' is 'gather'",
        "backend 'auto' is 'masked-dense'",
        "backend 'auto' is 'gather'",
    ]
    assert isinstance(model.sites, Auto)
    assert model.sites.chosen == "gather"


def test_it_gives_what_the_chosen_backend_gives() -> None:
    model = small_fcmae(backend="auto")
    images, mask = noise(model, 2), masks(model, {0, 3}, {1, 5})
    assert isinstance(
        model.sites(mask.bool(), model.grid, model.patch_size, "image"), VisiblePatches
    )
    encoded = model.encode(images, mask)
    model.sites = backend_of("masked-dense")
    close(encoded, model.encode(images, mask))
