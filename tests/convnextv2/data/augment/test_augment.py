"""Augmentation as FFCV operations: draws that are the sample's own, mixing, refusals, start-up."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from convnextv2.data.augment import Augment, ColorJitter, Mixing, RandAugment, RandomErasing
from tests.convnextv2.data.augment.test_augment_pixels import picture

pytestmark = pytest.mark.slow

EVERYTHING = Augment(
    color_jitter=ColorJitter(hue=0.1),
    rand_augment=RandAugment(),
    random_erasing=RandomErasing(probability=0.7),
    mixing=Mixing(0.8, 1.0),
)


def augmented(
    indices: list[int], epoch: int = 0, seed: int = 0, what: Augment = EVERYTHING
) -> list[bytes]:
    """Bytes of pictures number `indices` after all operations, by FFCV's contract."""
    clock = np.array([seed, epoch], np.uint64)
    images = np.stack([picture(number) for number in indices])
    memory = np.zeros((len(indices), 1), np.float32)
    result: Any = images
    for operation in what.operations(clock):
        code: Any = operation.generate_code()
        assert code.with_indices
        result = code(images, memory, np.array(indices, np.uint64))
    coefficients = np.ones(len(indices), np.float32)
    if what.mixing:
        images, coefficients = result
    return [
        image.tobytes() + share.tobytes() for image, share in zip(images, coefficients, strict=True)
    ]


ALONE = [
    Augment(color_jitter=ColorJitter(hue=0.1)),
    Augment(rand_augment=RandAugment()),
    Augment(random_erasing=RandomErasing(1.0)),
    Augment(random_erasing=RandomErasing(1.0, mode="rand")),
]


@pytest.mark.parametrize("what", ALONE)
def test_a_sample_is_the_same_at_any_place_of_any_batch(what: Augment) -> None:
    together = augmented([0, 1, 2, 3, 4], what=what)
    assert augmented([3], what=what) == together[3:4]
    assert augmented([4, 9, 2], what=what)[::2] == [together[4], together[2]]
    assert len(set(together)) == 5


def test_a_pair_is_the_same_wherever_it_stands() -> None:
    together = augmented([0, 1, 2, 3, 4, 5])
    assert augmented([4, 5]) + augmented([2, 3]) == together[4:] + together[2:4]
    assert augmented([1, 0]) == together[1::-1]


def test_the_number_of_threads_changes_nothing() -> None:
    together = augmented(list(range(12)))
    threads = numba.get_num_threads()
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        numba.set_num_threads(count)
        assert augmented(list(range(12))) == together
    numba.set_num_threads(threads)


@pytest.mark.parametrize("what", [*ALONE, Augment(mixing=Mixing())])
def test_every_epoch_and_seed_is_something_else(what: Augment) -> None:
    indices = list(range(8))  # RandAugment leaves a quarter as they are
    first = augmented(indices, what=what)
    assert augmented(indices, what=what) == first
    assert augmented(indices, epoch=1, what=what) != first
    assert augmented(indices, seed=1, what=what) != first


def test_the_clock_is_read_at_every_batch() -> None:
    clock = np.array([0, 0], np.uint64)
    code = RandomErasing(1.0).operation(clock).generate_code()
    first, second = (np.zeros((1, 32, 32, 3), np.uint8) for _ in range(2))
    code(first, None, np.zeros(1, np.uint64))
    clock[1] = 1
    code(second, None, np.zeros(1, np.uint64))
    assert (first != second).any()


def test_operations_come_in_the_recipes_order() -> None:
    clock = np.zeros(2, np.uint64)
    names = [operation.kernel.__name__ for operation in EVERYTHING.operations(clock)]
    assert names == ["jitter", "rand_augment", "erase", "mix_pairs"]
    assert Augment().operations(clock) == []


def mixed(settings: Mixing, images: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    code = settings.operation(np.zeros(2, np.uint64)).generate_code()
    indices = np.arange(len(images), dtype=np.uint64)
    made, coefficients = code(images.copy(), np.empty((len(images), 1), np.float32), indices)
    assert coefficients.shape == (len(images),)
    return made, coefficients


def test_mixup_is_timms_rounded_sum_of_the_neighbours() -> None:
    images = np.stack([picture(number) for number in range(20)])
    made, coefficients = mixed(Mixing(0.8, 0.0), images)
    assert len(set(coefficients.tolist())) == 20
    for row, share in enumerate(coefficients):
        # timm/data/mixup.py, FastCollateMixup: float32 arithmetic, np.rint.
        own, partner = images[row].astype(np.float32), images[row ^ 1].astype(np.float32)
        expected = np.rint(own * share + partner * (1 - share))
        np.testing.assert_array_equal(made[row], expected)


def test_cutmix_is_a_box_of_the_neighbour_and_its_share_of_the_area() -> None:
    images = np.zeros((200, 21, 30, 3), np.uint8)
    images[1::2] = 200
    made, coefficients = mixed(Mixing(0.0, 1.0), images)
    for row, share in enumerate(coefficients):
        foreign = (made[row] != images[row]).all(axis=2)
        rows, columns = foreign.any(axis=1), foreign.any(axis=0)
        assert (foreign == rows[:, None] & columns).all()
        for line in (rows, columns):
            assert np.count_nonzero(np.diff(line)) <= 2  # one piece
        assert (made[row][foreign] == images[row ^ 1][foreign]).all()
        assert share == pytest.approx(1 - foreign.mean(), abs=1e-6)


def test_an_odd_batch_cannot_be_mixed() -> None:
    with pytest.raises(ValueError, match="pairs, this batch has 3"):
        augmented([0, 1, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixing(0.0, 0.0), "not both 0: leave mixing out"),
        (lambda: Mixing(-0.1, 1.0), r"mixup alpha -0\.1, .* expected 0 or more"),
        (lambda: Mixing(probability=1.5), "probabilities are 0 to 1"),
        (lambda: RandAugment(magnitude=11), "magnitude is 0 to 10"),
        (lambda: RandAugment(layers=9), "9 layers of RandAugment; expected 1 to 8"),
        (lambda: RandomErasing(1.5), r"probability 1\.5 of erasing; expected 0 to 1"),
        (lambda: RandomErasing(area=(0.5, 0.1)), "smallest <= largest <= 1"),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), r"ratio \(0\.0, 1\.0\) of erasing"),
        (lambda: RandomErasing(mode="blur"), "mode 'blur' of erasing; expected .*pixel"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


SECOND_PROCESS = """
import numpy as np
from convnextv2.data.augment import Augment, ColorJitter, Mixing, RandAugment, RandomErasing
everything = Augment(color_jitter=ColorJitter(), rand_augment=RandAugment(),
                     random_erasing=RandomErasing(mode="rand"), mixing=Mixing(0.5, 0.5))
images, memory = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1), np.float32)
for operation in everything.operations(np.zeros(2, np.uint64)):
    operation.generate_code()(images, memory, np.arange(2, dtype=np.uint64))
    stats = operation.kernel.stats
    print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def test_a_second_process_compiles_nothing_whatever_its_settings() -> None:
    augmented([0, 1])
    # This very cache, should a source change while the test runs.
    environment = os.environ | {"NUMBA_CACHE_DIR": numba.config.CACHE_DIR}
    command = [sys.executable, "-c", SECOND_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split("\n") == ["0 1"] * 4 + [""]
