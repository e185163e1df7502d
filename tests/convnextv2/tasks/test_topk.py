"""Counting right answers, against a plain sort."""

import pytest
import torch

from convnextv2.tasks.topk import in_top_k, num_correct

RANKED = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0]]).expand(5, 5)
"""The same scores for five images; class 1 is best, then 3, 2, 0, 4."""


@pytest.mark.parametrize(("k", "right"), [(1, {1}), (2, {1, 3}), (4, {0, 1, 2, 3})])
def test_a_label_counts_where_it_is_among_the_k_best(k: int, right: set[int]) -> None:
    found = in_top_k(RANKED, torch.arange(5), k)
    assert {label for label in range(5) if found[label]} == right


def test_classes_at_or_below_a_bound_are_no_answers() -> None:
    labels, ks = torch.arange(5), (1, 2, 3, 4, 5, 9)
    assert num_correct(RANKED, labels, ks).tolist() == [1, 2, 3, 4, 5, 5]
    assert num_correct(RANKED, labels, ks, above=0).tolist() == [1, 2, 3, 4, 4, 4]
    assert num_correct(RANKED, labels, ks, above=0.4).tolist() == [0] * 6


def test_of_several_labels_one_is_enough() -> None:
    labels = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]])
    assert in_top_k(RANKED[:3], labels, 1).tolist() == [False, False, False]
    assert in_top_k(RANKED[:3], labels, 2).tolist() == [False, True, False]
    assert in_top_k(RANKED[:3], labels, 5).tolist() == [True, True, False]


def test_many_scores_as_by_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 30, generator=generator)
    labels = torch.randint(30, (200,), generator=generator)
    rank = (scores > scores[torch.arange(200), labels][:, None]).sum(dim=1)
    assert num_correct(scores, labels, (1, 5)).tolist() == [(rank < k).sum() for k in (1, 5)]
