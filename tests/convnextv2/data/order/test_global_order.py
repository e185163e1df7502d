"""Order: one global order for every world size, exact from every position, in little memory."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextv2.data.order.global_order import GlobalOrder, Indices, few_labels, part_of

WORLDS = (1, 2, 3, 5, 8)
IMAGENET_22K = 14_197_122


def blocks(count: int, size: int = 7) -> Indices:
    return np.append(np.arange(0, count, size), count).astype(np.uint64)


def seen(order: GlobalOrder, epoch: int, world_size: int, start: int = 0) -> list[list[int]]:
    """What all workers see of each global batch, sorted within it."""
    workers = [
        list(order.worker_batches(epoch, rank=rank, world_size=world_size, start=start))
        for rank in range(world_size)
    ]
    return [sorted(np.concatenate(parts).tolist()) for parts in zip(*workers, strict=True)]


ORDERS = {
    "random": GlobalOrder(240, 24, 1),
    "random, odd": GlobalOrder(101, 10, 1, drop_last=False),
    "subset": GlobalOrder(np.arange(0, 300, 3).astype(np.uint64), 8, 1, drop_last=False),
    "blocks": GlobalOrder(240, 24, 1, blocks=blocks(240), window_blocks=4),
    "blocks, odd": GlobalOrder(101, 10, 1, drop_last=False, blocks=blocks(101), window_blocks=3),
    "blocks, subset": GlobalOrder(
        np.arange(0, 300, 3).astype(np.uint64), 8, 1, blocks=blocks(300), window_blocks=5
    ),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_sample_once_and_the_same_global_batches(order: GlobalOrder, world_size: int) -> None:
    batches = seen(order, 2, world_size)
    assert batches == seen(order, 2, 1)
    served = [sample for batch in batches for sample in batch]
    assert len(set(served)) == len(served) == order.samples_per_epoch
    every = range(order.samples) if isinstance(order.samples, int) else order.samples.tolist()
    assert set(served) <= set(every)
    if not order.drop_last:
        assert set(served) == set(every)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_going_on_at_every_position_is_the_straight_run(
    order: GlobalOrder, world_size: int
) -> None:
    straight = seen(order, 1, 1)
    whole = [batches_of(order, rank, world_size, 0) for rank in range(world_size)]
    for consumed in range(0, order.samples_per_epoch, order.global_batch_size):
        epoch, start = order.locate(order.samples_per_epoch + consumed)
        assert epoch == 1
        rest = [batches_of(order, rank, world_size, start) for rank in range(world_size)]
        # The same worker count: the very same arrays. One worker before: the same global batches.
        assert rest == [worker[start:] for worker in whole]
        joined = [sorted(itertools.chain(*parts)) for parts in zip(*rest, strict=True)]
        assert joined == straight[start:]


def batches_of(order: GlobalOrder, rank: int, world_size: int, start: int) -> list[list[int]]:
    batches = order.worker_batches(1, rank=rank, world_size=world_size, start=start)
    return [batch.tolist() for batch in batches]


def test_workers_get_equal_parts_in_whole_pairs() -> None:
    batch = np.arange(48, dtype=np.uint64)
    for world_size in (1, 2, 3, 4, 6, 8):
        parts = [part_of(batch, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {48 // world_size}
        for part in parts:
            assert (part.reshape(-1, 2)[:, 1] == part.reshape(-1, 2)[:, 0] + 1).all()
    uneven = [part_of(batch[:10], rank, 4) for rank in range(4)]
    assert [len(part) for part in uneven] == [3, 3, 2, 2]


@pytest.mark.parametrize("block_random", [False, True])
def test_a_partner_depends_on_seed_epoch_and_sample_and_not_on_the_workers(
    block_random: bool,
) -> None:
    order = GlobalOrder(480, 48, 7, blocks=blocks(480) if block_random else None, window_blocks=8)

    def partners(epoch: int, world_size: int, start: int = 0) -> dict[int, int]:
        found: dict[int, int] = {}
        for rank in range(world_size):
            for part in order.worker_batches(epoch, rank=rank, world_size=world_size, start=start):
                other = part.reshape(-1, 2)[:, ::-1].ravel()
                found |= dict(zip(part.tolist(), other.tolist(), strict=True))
        return found

    alone = partners(3, 1)
    assert len(alone) == 480
    for world_size in (2, 3, 4, 6, 8):
        assert partners(3, world_size) == alone
    resumed = partners(3, 8, start=4)
    assert resumed == {sample: alone[sample] for sample in resumed}
    assert partners(4, 1) != alone


def test_epochs_and_seeds_differ() -> None:
    orders = [GlobalOrder(64, 64, seed).batch(epoch, 0).tolist() for seed in (0, 1)
              for epoch in (0, 1)]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 4


def test_a_position_inside_a_batch_is_refused_with_those_near() -> None:
    with pytest.raises(ValueError, match=r"25 samples .* of 24; 24 and 48 are between"):
        ORDERS["random"].locate(25)


@pytest.mark.parametrize("drop_last", [False, True])
def test_positions_are_between_batches_and_nowhere_else(drop_last: bool) -> None:
    """Those that an error names are accepted, in the short last batch of an epoch too."""
    order = GlobalOrder(10, 4, 0, drop_last=drop_last)
    ends = [0, 4, 8, 12, 16] if drop_last else [0, 4, 8, 10, 14, 18, 20]
    assert [order.locate(end) for end in ends] == [
        divmod(number, order.batches_per_epoch) for number in range(len(ends))
    ]
    for consumed in sorted(set(range(ends[-1])) - set(ends)):
        below = max(end for end in ends if end < consumed)
        above = min(end for end in ends if end > consumed)
        with pytest.raises(ValueError, match=f"{below} and {above} are between two"):
            order.locate(consumed)


def test_an_order_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples make no global batch of 4; at most 3"):
        GlobalOrder(3, 4, 0)
    assert len(GlobalOrder(3, 4, 0, drop_last=False).batch(0, 0)) == 3


@pytest.mark.parametrize(
    ("samples", "edges", "problem"),
    [
        (100, [0, 50, 90], "from sample 0 to 90; they must .* which is 100"),
        (100, [7, 50, 100], "from sample 7 to 100"),
        (100, [0, 60, 50, 100], "must ascend"),
        ([3, 120], [0, 50, 100], "which is more than 120"),
        ([8, 3], [0, 50, 100], "samples ascending"),
        ([3, 3], [0, 50, 100], "each of them once"),
    ],
)
def test_blocks_that_would_lose_samples_are_refused(
    samples: int | list[int], edges: list[int], problem: str
) -> None:
    chosen = samples if isinstance(samples, int) else np.array(samples, np.uint64)
    with pytest.raises(ValueError, match=problem):
        GlobalOrder(chosen, 2, 0, blocks=np.array(edges, np.uint64))


def test_the_last_batch_is_dropped_or_short_and_never_filled() -> None:
    dropped, kept = GlobalOrder(10, 4, 0), GlobalOrder(10, 4, 0, drop_last=False)
    assert [len(dropped.batch(0, n)) for n in range(dropped.batches_per_epoch)] == [4, 4]
    assert [len(kept.batch(0, n)) for n in range(kept.batches_per_epoch)] == [4, 4, 2]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 400),
    batch=st.integers(1, 64),
    size=st.integers(1, 50),
    window=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_blocks_of_any_size_serve_every_sample_once(
    count: int, batch: int, size: int, window: int, seed: int
) -> None:
    order = GlobalOrder(
        count, batch, seed, drop_last=False, blocks=blocks(count, size), window_blocks=window
    )
    served = np.concatenate([order.batch(seed, n) for n in range(order.batches_per_epoch)])
    assert sorted(served.tolist()) == list(range(count))


def test_block_random_reads_a_window_of_whole_blocks_at_a_time() -> None:
    count, size, window = 7000, 70, 10
    order = GlobalOrder(count, 70, 0, blocks=blocks(count, size), window_blocks=window)
    first = np.concatenate([order.batch(0, n) for n in range(window)])
    read = np.unique(first // size)
    assert len(read) == window
    assert sorted(first.tolist()) == sorted(
        np.concatenate([np.arange(b * size, (b + 1) * size) for b in read]).tolist()
    )
    # The blocks lie all over the set, and a batch mixes most of its window's.
    assert np.ptp(read) > 50
    assert len(np.unique(order.batch(0, 3) // size)) > 7


def test_every_window_of_every_epoch_and_seed_is_mixed_in_its_own_way() -> None:
    """Places inside of blocks, which the shuffle of the blocks leaves as they are."""
    size, per_window = 10, 40
    mixed = set()
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        order = GlobalOrder(160, per_window, seed, blocks=blocks(160, size), window_blocks=4)
        mixed |= {tuple((order.batch(epoch, number) % size).tolist()) for number in range(4)}
    assert len(mixed) == 16


def test_no_window_is_a_remnant_and_none_is_larger_than_asked_for() -> None:
    """17 blocks by at most 8: windows of 5, 6 and 6, and not of 8, 8 and 1."""
    order = GlobalOrder(170, 10, 2, blocks=blocks(170, 10), window_blocks=8)
    batches = [set((order.batch(0, n) // 10).tolist()) for n in range(order.batches_per_epoch)]
    windows = [set.union(*batches[a:b]) for a, b in ((0, 5), (5, 11), (11, 17))]
    assert [len(window) for window in windows] == [5, 6, 6]
    assert len(set.union(*windows)) == 17


def test_what_a_batch_mixes_in_either_order_of_a_file_sorted_by_class() -> None:
    """The bound of the docstring: blocks of one window, and neighbours without correlation."""
    count, per_block, window, batch = 1_000_000, 260, 128, 4096
    full = GlobalOrder(count, batch, 0)
    block_random = GlobalOrder(count, batch, 0, blocks=blocks(count, per_block))
    for number in range(0, full.batches_per_epoch, 20):
        kinds = []
        for order in (full, block_random):
            samples = order.batch(1, number)
            labels = (samples // 1000).astype(np.float64)
            assert abs(np.corrcoef(labels[:-1], labels[1:])[0, 1]) < 0.07  # 4.5 deviations
            kinds.append(len(np.unique(samples // per_block)))
        assert kinds[0] > 2300
        # All blocks of a window, or of the two that it lies in.
        assert 0.9 * window < kinds[1] <= 2 * window


@pytest.mark.parametrize("block_random", [False, True])
def test_imagenet_22k_takes_no_memory_of_its_length(block_random: bool) -> None:
    starts = blocks(IMAGENET_22K, 200) if block_random else None
    order = GlobalOrder(IMAGENET_22K, 4096, 0, blocks=starts)
    tracemalloc.start()
    for number in (0, 1700):
        batch = next(order.worker_batches(3, rank=5, world_size=64, start=number))
        assert len(batch) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 112 MB for a shuffled list. Blocks: 71,000 of them, a few numbers each.
    assert peak < (8e6 if block_random else 2e6)


def test_few_labels_are_of_every_class_and_a_function_of_the_seed() -> None:
    labels = np.arange(60, dtype=np.int64) % 3
    samples = np.arange(6, 60, dtype=np.uint64)
    chosen = few_labels(labels, samples, 4, seed=0)
    assert sorted(labels[chosen].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert chosen.min() >= 6
    assert chosen.tolist() == few_labels(labels, samples, 4, seed=0).tolist()
    assert chosen.tolist() != few_labels(labels, samples, 4, seed=1).tolist()
    with pytest.raises(ValueError, match="more than the 18 images of class 0; 18 would work"):
        few_labels(labels, samples, 19, seed=0)
