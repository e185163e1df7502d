"""Batch arithmetic: what is accepted multiplies exactly, what is refused comes with a way out."""

import re
from itertools import product

import pytest

from cluster.batch_layout import BatchLayout, group_sizes, micro_batch_sizes

TRIPLES = list(product(range(1, 41), range(1, 13), range(1, 10)))
ADVICE = re.compile(r"(micro|global)_batch_size ([\d or]+) would work$")


def refusal(triple: tuple[int, int, int]) -> str:
    try:
        BatchLayout(*triple)
    except ValueError as error:
        return str(error)
    return ""


def test_what_is_accepted_multiplies_exactly() -> None:
    accepted = [BatchLayout(*triple) for triple in TRIPLES if not refusal(triple)]
    assert BatchLayout(24, 3, 4) in accepted
    for batch_layout in accepted:
        micro, workers = batch_layout.micro_batch_size, batch_layout.world_size
        assert batch_layout.accumulation * micro * workers == batch_layout.global_batch_size


def test_what_does_not_divide_is_refused() -> None:
    refused = {triple for triple in TRIPLES if refusal(triple)}
    assert refused == {(whole, micro, n) for whole, micro, n in TRIPLES if whole % (micro * n)}


def test_every_value_that_would_work_does() -> None:
    kinds = set()
    for whole, micro, workers in TRIPLES:
        message = refusal((whole, micro, workers))
        if not message:
            continue
        advice = ADVICE.search(message)
        assert advice, message
        kinds.add(advice[1])
        for value in map(int, advice[2].split(" or ")):
            changed = (whole, value) if advice[1] == "micro" else (value, micro)
            assert not refusal((*changed, workers)), message
            assert value <= micro or advice[1] == "global", "memory may not allow more"
    assert kinds == {"micro", "global"}


def test_the_message_names_what_was_asked_for() -> None:
    words = "global_batch_size 128 does not divide into 3 workers x micro_batch_size 8; "
    with pytest.raises(ValueError, match=words):
        BatchLayout(128, 8, 3)


@pytest.mark.parametrize(
    ("whole", "workers", "sizes"),
    [(24, 2, [12, 6, 4, 3, 2, 1]), (7, 7, [1]), (7, 2, []), (4, 8, [])],
)
def test_micro_batch_sizes(whole: int, workers: int, sizes: list[int]) -> None:
    assert micro_batch_sizes(whole, workers) == sizes


def test_group_sizes_are_those_that_share_the_batch() -> None:
    assert group_sizes(128, 16, least=1, most=9) == [1, 2, 4, 8]
    assert group_sizes(128, 64, least=3, most=9) == []
