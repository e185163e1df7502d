"""The permutation without a list: a bijection for every length, that looks like a shuffled list."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from convnextv2.data.order.permutation import permute

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


Drawn = NDArray[np.int64]


def ours(length: int, draws: int) -> Drawn:
    """Permutations (draws, length) over 10 seeds and many epochs."""
    positions = np.arange(length, dtype=np.uint64)
    rows = [permute(positions, length, draw % 10, draw // 10) for draw in range(draws)]
    return np.array(rows, np.int64)


def shuffled(length: int, draws: int) -> Drawn:
    """The same by NumPy: what the measures below must find nothing in either."""
    return np.random.default_rng(0).permuted(np.tile(np.arange(length), (draws, 1)), axis=1)


def excess(counts: NDArray[np.int64], freedom: int) -> float:
    """Chi-square against equal counts, in standard deviations from what chance has."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2).sum() / expected
    return float((chi_square - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("draw", [ours, shuffled])
@pytest.mark.parametrize(("length", "draws"), [(4, 2400), (7, 12000)])
def test_of_a_few_things_all_orders_are_as_frequent(
    draw: Callable[[int, int], Drawn], length: int, draws: int
) -> None:
    codes = draw(length, draws) @ length ** np.arange(length)
    counts = np.unique(codes, return_counts=True)[1]
    orders = math.factorial(length)
    counts = np.append(counts, np.zeros(orders - len(counts), np.int64))
    assert abs(excess(counts, orders - 1)) < 4


@pytest.mark.parametrize("draw", [ours, shuffled])
@pytest.mark.parametrize("length", [9, 16, 33, 100])
def test_where_things_land_and_their_neighbours_is_chance(
    draw: Callable[[int, int], Drawn], length: int
) -> None:
    """Over seeds and epochs; and what one epoch does tells nothing about the next."""
    drawn = draw(length, 3000)
    landed = np.stack([np.bincount(column, minlength=length) for column in drawn.T])
    # Rows and columns of the table have given sums.
    assert abs(excess(landed, (length - 1) ** 2)) < 5
    steps = np.bincount((np.diff(drawn) % length).ravel(), minlength=length)[1:]
    assert abs(excess(steps, length - 2)) < 5
    # A place holds the same in two draws once per epoch on average, with deviation 1.
    for apart in (1, 10):
        same = (drawn[apart:] == drawn[:-apart]).sum(axis=1)
        assert abs(same.mean() - 1) < 5 / np.sqrt(len(same))


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
