"""The permutation without a list: a bijection for every length, that looks like a shuffled list."""

import numpy as np
import pytest

from convnextv2.data.permutation import permute

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100, 1000, 1023, 1024, 1025, 5000]


def whole(length: int, *key: int) -> list[int]:
    return permute(np.arange(length, dtype=np.uint64), length, *key).tolist()


@pytest.mark.parametrize("length", LENGTHS)
def test_every_place_is_taken_once(length: int) -> None:
    for epoch in range(5):
        assert sorted(whole(length, 3, epoch)) == list(range(length))


def test_any_positions_can_be_looked_at_alone() -> None:
    straight = whole(1000, 7, 1)
    some = np.array([999, 0, 500, 0, 13], np.uint64)
    assert permute(some, 1000, 7, 1).tolist() == [straight[n] for n in some]


def test_seed_epoch_and_their_order_matter() -> None:
    drawn = {tuple(whole(50, *key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1)]}
    assert len(drawn) == 5


def test_of_four_things_all_orders_are_as_frequent() -> None:
    """Chi-square over the 24 orders: 23 degrees of freedom, 99.99% below 58."""
    draws = 4800
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(draws):
        order = tuple(whole(4, 1, epoch))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((n - draws / 24) ** 2 for n in counts.values()) / (draws / 24) < 58


def test_neighbours_do_not_stay_neighbours() -> None:
    """As in a list that NumPy shuffled: distances of what were neighbours, and no correlation."""
    length = 100_003
    ours = np.array(whole(length, 5, 0), np.int64)
    numpys = np.random.default_rng(0).permutation(length)
    for order in (ours, numpys):
        distances = np.abs(np.diff(order))
        assert abs(distances.mean() / (length / 3) - 1) < 0.01
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.01
        assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < 0.01
    # Two epochs agree in as many places as chance has it: one.
    assert (ours == np.array(whole(length, 5, 1))).sum() < 8
