"""Counter-based random numbers: exact values, and that they behave like random ones."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from convnextv2.data.ffcv_compat import njit
from convnextv2.randomness import Draw, mix, normal, stream_bits, symmetric_beta, uniform
from tests.convnextv2.data.order import splitmix

LARGEST = 2**64 - 1
COUNTERS = [
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
    (42, 1599, 14_197_121, int(Draw.MASK) + 48),
    (LARGEST, LARGEST, LARGEST, LARGEST),
    (LARGEST, 0, 2**63, 2**32),
]


@njit
def compiled(
    counters: npt.NDArray[np.uint64], out: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    for row in range(len(counters)):
        out[row] = uniform(counters[row, 0], counters[row, 1], counters[row, 2], counters[row, 3])
    return out


def drawn(seed: int, epoch: int, samples: range, draw: int) -> npt.NDArray[np.float64]:
    one = np.ones(1, np.uint64)
    return uniform(seed * one, epoch * one, np.array(samples, np.uint64), np.uint64(draw) * one)


# The published sequence of SplitMix64 for the seed 1234567.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_mixer_is_splitmix64s() -> None:
    steps = [(1234567 + k * splitmix.GOLDEN) & LARGEST for k in range(1, 6)]
    assert mix(np.array(steps, np.uint64)).tolist() == PUBLISHED
    assert [splitmix.mix(step) for step in steps] == PUBLISHED


def test_a_stream_is_splitmix64s_at_any_place() -> None:
    key = np.array([1234567], np.uint64)
    assert stream_bits(key, np.arange(5, dtype=np.uint64)).tolist() == PUBLISHED


def test_numpy_numba_and_plain_python_draw_the_same_numbers() -> None:
    counters = np.array(COUNTERS, np.uint64)
    expected = [splitmix.uniform(*row) for row in COUNTERS]
    assert uniform(*counters.T).tolist() == expected
    assert compiled(counters, np.empty(len(counters))).tolist() == expected


def test_arguments_broadcast() -> None:
    seeds, samples = np.array([[3], [4]], np.uint64), np.array([[5, 6, 7]], np.uint64)
    one = np.ones((1, 1), np.uint64)
    grid = uniform(seeds, one, samples, one)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == splitmix.uniform(4, 1, 7, 1)


def test_numbers_are_uniform() -> None:
    values = drawn(0, 0, range(100_000), 0)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 20).astype(int), minlength=20)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 0.1% quantile of 19 degrees of freedom


@pytest.mark.parametrize(
    ("seed", "epoch", "samples", "draw"),
    [
        (1, 0, range(20_000), 0),
        (0, 1, range(20_000), 0),
        (0, 0, range(1, 20_001), 0),
        (0, 0, range(20_000), 1),
    ],
)
def test_neighbouring_counters_are_uncorrelated(
    seed: int, epoch: int, samples: range, draw: int
) -> None:
    first, second = drawn(0, 0, range(20_000), 0), drawn(seed, epoch, samples, draw)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(20_000)


def test_no_two_counters_may_be_swapped() -> None:
    # A plain sum of the counters would give these the same numbers.
    counters = np.array([(1, 2, 3, 4), (2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3)], np.uint64)
    assert len(set(uniform(*counters.T))) == 4


@njit
def compiled_normal_and_beta(
    samples: npt.NDArray[np.uint64], alpha: float, out: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    zero = np.uint64(0)
    for row in range(len(samples)):
        out[row, 0] = normal(zero, zero, samples[row], np.uint64(7))
        out[row, 1] = symmetric_beta(zero, zero, samples[row], np.uint64(7), alpha)
    return out


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_normal_and_beta_numbers_are_distributed_as_their_names_say(alpha: float) -> None:
    samples, zero = np.arange(20_000, dtype=np.uint64), np.zeros(1, np.uint64)
    draw = np.array([7], np.uint64)
    normals = normal(zero, zero, samples, draw)
    betas = symmetric_beta(zero, zero, samples, draw, np.array(alpha))
    assert stats.kstest(normals, stats.norm.cdf).pvalue > 1e-3
    assert stats.kstest(betas, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    one_by_one = compiled_normal_and_beta(samples, alpha, np.empty((20_000, 2)))
    np.testing.assert_allclose(one_by_one, np.stack([normals, betas], axis=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
def test_extreme_betas_are_numbers_between_0_and_1(alpha: float) -> None:
    samples, zero = np.arange(20_000, dtype=np.uint64), np.zeros(1, np.uint64)
    betas = symmetric_beta(zero, zero, samples, np.array([7], np.uint64), np.array(alpha))
    assert betas.min() >= 0
    assert betas.max() <= 1
    assert betas.mean() == pytest.approx(0.5, abs=0.02)
    assert betas.std() == pytest.approx(0.5 / np.sqrt(2 * alpha + 1), rel=0.02)


def test_operations_own_ranges_of_draws_that_do_not_meet() -> None:
    # Draws a sample takes: ten attempts of four for a crop, one for a flip, one per file name for
    # the hold-out, order and factors of jitter, eight layers of eight, a rectangle like a crop.
    used = {
        Draw.CROP: 10 * 4,
        Draw.FLIP: 1,
        Draw.HOLD_OUT: 1,
        Draw.COLOR_JITTER: 12,
        Draw.RAND_AUGMENT: 8 * 8,
        Draw.ERASING: 4 + 10 * 4 + 1,
        Draw.MIXING: 10,
        Draw.MASK: 1,
    }
    assert list(used) == sorted(Draw)
    for operation, following in pairwise(used):
        assert operation + used[operation] <= following
