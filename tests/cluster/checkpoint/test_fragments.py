"""Pieces and their average, against what anybody would write down."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from cluster.checkpoint.fragments import (
    EMA,
    EMA_WEIGHT,
    MOMENTS,
    WEIGHT,
    StateFragment,
)
from tests.cluster.checkpoint.fragments import make_states, replicated, scattered


def fragment(numel: int = 10, *, trained: bool = True, seed: int = 0) -> StateFragment:
    generator = torch.Generator().manual_seed(seed)
    kinds = (WEIGHT, *MOMENTS) if trained else (WEIGHT,)
    tensors = {kind: torch.randn(numel, generator=generator) for kind in kinds}
    return StateFragment(f"p{seed}", (numel,), 0, tensors)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
def test_what_all_keep_is_shared_out_without_gap_or_overlap(size: int) -> None:
    for whole in replicated(make_states()):
        parts = [whole.saved_by(rank, size) for rank in range(size)]
        assert parts[0].start == 0
        for kind, tensor in whole.tensors.items():
            assert torch.equal(torch.cat([part.tensors[kind] for part in parts]), tensor)
        for part, following in itertools.pairwise(parts):
            assert part.start + part.numel == following.start
        numels = [part.numel for part in parts]
        assert max(numels) - min(numels) <= 1, "fair"
        assert not any(part.replicated for part in parts)
        assert {(part.name, part.shape) for part in parts} == {(whole.name, whole.shape)}


def test_of_fewer_elements_than_workers_some_save_nothing() -> None:
    whole = StateFragment("gamma", (3,), 0, {WEIGHT: torch.arange(3.0)}, replicated=True)
    assert [whole.saved_by(rank, 5).tensors[WEIGHT].tolist() for rank in range(5)] == [
        [],
        [0.0],
        [],
        [1.0],
        [2.0],
    ]


def test_what_a_worker_alone_keeps_it_saves_whole() -> None:
    for fragments in scattered(make_states(), 3):
        assert all(each.saved_by(2, 3) is each for each in fragments)


def test_a_part_is_a_view_of_what_is_trained_on() -> None:
    whole = StateFragment("x", (8,), 0, {WEIGHT: torch.zeros(8)}, replicated=True)
    whole.saved_by(1, 2).tensors[WEIGHT].fill_(1)
    assert whole.tensors[WEIGHT].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def walk(steps: int) -> list[Tensor]:
    """Weights after each step, far from the weights before the first."""
    generator = torch.Generator().manual_seed(7)
    return [5 + torch.randn(10, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_the_average_is_the_plain_one(decay: float) -> None:
    kept = fragment()
    average, expected = EMA([kept], decay), torch.zeros(10, dtype=torch.float64)
    for number, weights in enumerate(walk(30), start=1):
        kept.tensors[WEIGHT].copy_(weights)
        average.update()
        factor = min(decay, (number - 1) / number)
        expected = factor * expected + (1 - factor) * weights.double()
        torch.testing.assert_close(
            kept.tensors[EMA_WEIGHT].double(), expected, rtol=1e-5, atol=1e-6
        )
    assert average.updates == 30


def test_while_it_warms_up_it_is_the_mean_and_knows_nothing_of_the_beginning() -> None:
    kept = fragment()
    kept.tensors[WEIGHT].fill_(1e30)  # A trace of these weights would be seen.
    average, seen = EMA([kept], 0.99), walk(50)
    for number, weights in enumerate(seen, start=1):
        kept.tensors[WEIGHT].copy_(weights)
        average.update()
        mean = torch.stack(seen[:number]).mean(0)
        torch.testing.assert_close(kept.tensors[EMA_WEIGHT], mean, rtol=1e-5, atol=1e-5)


def test_a_constant_is_its_own_average_exactly_from_the_first_update() -> None:
    kept = fragment()
    average = EMA([kept], 0.9)
    kept.tensors[WEIGHT].copy_(walk(1)[0])
    average.update()
    assert torch.equal(kept.tensors[EMA_WEIGHT], kept.tensors[WEIGHT])


def test_before_the_first_update_the_average_is_the_weights_but_not_their_memory() -> None:
    kept = fragment()
    EMA([kept], 0.9)
    assert torch.equal(kept.tensors[EMA_WEIGHT], kept.tensors[WEIGHT])
    kept.tensors[WEIGHT].add_(1)
    assert not torch.equal(kept.tensors[EMA_WEIGHT], kept.tensors[WEIGHT])


def test_swapping_twice_puts_back_every_bit_in_place() -> None:
    kept = fragment()
    average = EMA([kept], 0.9)
    kept.tensors[EMA_WEIGHT].copy_(walk(1)[0])
    kept.tensors[WEIGHT][:3] = torch.tensor([math.nan, -0.0, 1e-42])
    places = {kind: tensor.data_ptr() for kind, tensor in kept.tensors.items()}
    before = {kind: tensor.clone() for kind, tensor in kept.tensors.items()}

    def bits(tensor: Tensor) -> list[int]:
        found: list[int] = tensor.view(torch.int32).tolist()
        return found

    average.swap()
    assert bits(kept.tensors[WEIGHT]) == bits(before[EMA_WEIGHT])
    assert bits(kept.tensors[EMA_WEIGHT]) == bits(before[WEIGHT])
    average.swap()
    for kind, tensor in kept.tensors.items():
        assert bits(tensor) == bits(before[kind])
        assert tensor.data_ptr() == places[kind]


def test_what_is_not_trained_has_no_average() -> None:
    fragments = [fragment(seed=0), fragment(seed=1, trained=False)]
    average = EMA(fragments, 0.9)
    assert [EMA_WEIGHT in each.tensors for each in fragments] == [True, False]
    frozen = EMA(fragments[1:], 0.9)
    for each in (average, frozen):
        each.update()
        each.swap()
