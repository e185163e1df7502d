"""Masks: how many, which, and on what they depend."""

import numpy as np
import pytest
import torch

from convnextv2.fcmae.masking import (
    mask_from_noise,
    patchify,
    random_mask,
    sample_masks,
    unpatchify,
    visible_count,
)
from convnextv2.randomness import Draw
from tests.convnextv2.data.order import splitmix


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [
        (49, 0.6, 19),  # The paper's: floor(19.6). SparK rounds to 20.
        (144, 0.6, 57),
        (16, 0.6, 6),
        (4, 0.75, 1),
        (4, 0.9, 1),  # Never none.
        (2, 0.5, 1),
    ],
)
def test_visible_patches_are_counted_as_in_the_paper(
    patches: int, ratio: float, visible: int
) -> None:
    assert visible_count(patches, ratio) == visible
    mask = random_mask(5, patches, ratio)
    assert (~mask).sum(dim=1).tolist() == [visible] * 5


def test_the_smallest_noise_stays_visible() -> None:
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.2, 0.2, 0.2, 0.1]])
    mask = mask_from_noise(noise, 0.5)
    # Of equal numbers the first stays, so that the count holds.
    assert mask.tolist() == [[True, False, True, False], [False, True, True, False]]


def test_random_masks_belong_to_their_generator() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return random_mask(3, 49, 0.6, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_samples_mask_follows_from_seed_epoch_and_index_alone() -> None:
    indices = [7, 0, 14_197_121]
    masks = sample_masks(seed=3, epoch=5, indices=indices, num_patches=16, mask_ratio=0.6)
    for mask, index in zip(masks, indices, strict=True):
        noise = [splitmix.uniform(3, 5, index, Draw.MASK + patch) for patch in range(16)]
        visible = sorted(range(16), key=noise.__getitem__)[:6]
        assert mask.tolist() == [patch not in visible for patch in range(16)]


def test_a_samples_mask_does_not_know_its_batch() -> None:
    def drawn(indices: list[int], seed: int = 0, epoch: int = 0) -> torch.Tensor:
        return sample_masks(seed=seed, epoch=epoch, indices=indices, num_patches=49, mask_ratio=0.6)

    together = drawn([4, 9, 2, 7])
    assert torch.equal(torch.cat([drawn([2]), drawn([7, 4, 9])]), together[[2, 3, 0, 1]])
    assert torch.equal(
        sample_masks(seed=0, epoch=0, indices=torch.tensor([9]), num_patches=49, mask_ratio=0.6),
        together[[1]],
    )
    assert len(together.unique(dim=0)) == 4
    assert not torch.equal(drawn([4, 9, 2, 7], seed=1), together)
    assert not torch.equal(drawn([4, 9, 2, 7], epoch=1), together)


def test_every_patch_is_hidden_equally_often() -> None:
    masks = sample_masks(
        seed=0, epoch=0, indices=range(20_000), num_patches=49, mask_ratio=0.6
    ).double()
    expected = 30 / 49
    deviation = np.sqrt(expected * (1 - expected) / 20_000)
    assert ((masks.mean(dim=0) - expected).abs() < 4.5 * deviation).all()
    # Without replacement, two patches hide together a little less often than if independent.
    together = (masks[:, 0] * masks[:, 1]).mean()
    assert abs(together - 30 / 49 * 29 / 48) < 4.5 * np.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grid", [(1, 3), (2, 2), (3, 2)])
def test_unpatchify_undoes_patchify(channels: int, grid: tuple[int, int]) -> None:
    images = torch.arange(2 * channels * grid[0] * grid[1] * 16).reshape(
        2, channels, grid[0] * 4, grid[1] * 4
    )
    patches = patchify(images, 4)
    assert patches.shape == (2, grid[0] * grid[1], 16 * channels)
    assert torch.equal(unpatchify(patches, grid, 4), images)
