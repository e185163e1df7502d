"""Order: a function of (seed, epoch), the same global batches on any number of workers."""

import numpy as np
import numpy.typing as npt
import pytest

from convnextv2.data.order import GlobalOrder, few_labels

# Sample numbers with gaps, as they are where unreadable images were left out.
SAMPLES = np.array([index for index in range(50) if index % 7 != 3], np.uint64)
ORDER = GlobalOrder(SAMPLES, global_batch_size=8, seed=5)


def test_an_epoch_serves_every_sample_at_most_once_and_drops_the_partial_batch() -> None:
    assert len(SAMPLES) == 43
    for epoch in range(3):
        batches = ORDER.epoch(epoch)
        assert batches.shape == (5, 8) == (ORDER.batches_per_epoch, 8)
        assert len(np.unique(batches)) == 40
        assert np.isin(batches, SAMPLES).all()


def test_an_epoch_that_divides_serves_every_sample_exactly_once() -> None:
    batches = GlobalOrder(SAMPLES[:40], 8, seed=5).epoch(0)
    assert sorted(batches.ravel()) == sorted(SAMPLES[:40])


def test_over_epochs_the_dropped_samples_change() -> None:
    dropped = [tuple(np.setdiff1d(SAMPLES, ORDER.epoch(epoch))) for epoch in range(8)]
    assert all(len(left) == 3 for left in dropped)
    assert len(set(dropped)) > 1


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    again = GlobalOrder(SAMPLES.copy(), global_batch_size=8, seed=5)
    np.testing.assert_array_equal(again.epoch(2), ORDER.epoch(2))
    assert not np.array_equal(ORDER.epoch(2), ORDER.epoch(3))
    assert not np.array_equal(GlobalOrder(SAMPLES, 8, seed=6).epoch(2), ORDER.epoch(2))
    # (seed, epoch) is no sum: neighbouring seeds do not share epochs.
    assert not np.array_equal(GlobalOrder(SAMPLES, 8, seed=6).epoch(1), ORDER.epoch(2))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_workers_shares_make_up_the_same_global_batches(world_size: int) -> None:
    shares = [
        ORDER.share(1, rank=rank, world_size=world_size).reshape(5, -1)
        for rank in range(world_size)
    ]
    together = np.concatenate(shares, axis=1)
    np.testing.assert_array_equal(np.sort(together), np.sort(ORDER.epoch(1)))
    assert len({share.size for share in shares}) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_resuming_serves_what_was_left(world_size: int, start: int) -> None:
    for rank in range(world_size):
        whole = ORDER.share(1, rank=rank, world_size=world_size)
        rest = ORDER.share(1, rank=rank, world_size=world_size, start=start)
        np.testing.assert_array_equal(rest, whole[start * 8 // world_size :])


def test_resuming_on_another_number_of_workers_repeats_and_skips_nothing() -> None:
    before = np.concatenate([ORDER.share(0, rank=r, world_size=2)[: 2 * 4] for r in range(2)])
    after = np.concatenate([ORDER.share(0, rank=r, world_size=4, start=2) for r in range(4)])
    np.testing.assert_array_equal(
        np.sort(np.concatenate([before, after])), np.sort(ORDER.epoch(0).ravel())
    )


LABELS: npt.NDArray[np.int64] = np.arange(60) % 3


def test_few_labels_takes_as_many_of_every_class() -> None:
    samples = np.arange(5, 60, dtype=np.uint64)
    chosen = few_labels(LABELS, samples, per_class=4, seed=0)
    assert chosen.dtype == np.uint64
    assert np.bincount(LABELS[chosen]).tolist() == [4, 4, 4]
    assert np.isin(chosen, samples).all()
    assert (np.diff(chosen.astype(int)) > 0).all()


def test_few_labels_is_drawn_by_the_seed_and_grows_with_the_number() -> None:
    samples = np.arange(60, dtype=np.uint64)
    chosen = few_labels(LABELS, samples, 4, seed=0)
    np.testing.assert_array_equal(few_labels(LABELS, samples, 4, seed=0), chosen)
    assert not np.array_equal(few_labels(LABELS, samples, 4, seed=1), chosen)
    assert set(chosen) < set(few_labels(LABELS, samples, 6, seed=0))
    # Classes are drawn independently: not the same places of each.
    places = {tuple(chosen[LABELS[chosen] == label] // 3) for label in range(3)}
    assert len(places) > 1


def test_few_labels_names_the_class_that_has_too_few_and_what_would_work() -> None:
    samples = np.array([0, 1, 2, 3, 4, 5, 6, 7], np.uint64)
    with pytest.raises(ValueError, match=r"3 is more than the 2 images of class 2; 2 would work"):
        few_labels(LABELS, samples, per_class=3, seed=0)
