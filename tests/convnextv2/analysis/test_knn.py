"""k nearest neighbours: against a loop in fp64, and the same however the bank is cut up."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnextv2.analysis import knn
from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks.topk import num_correct

CLASSES, K = 5, 7


def made_up(bank: int = 60, queries: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, bank and the bank's labels; fp64, so that rounding decides nothing."""
    generator = torch.Generator().manual_seed(bank)
    features = torch.randn(bank + queries, 12, generator=generator, dtype=torch.float64)
    features = F.normalize(features, dim=1)
    labels = torch.randint(0, CLASSES, (bank,), generator=generator)
    return features[:queries], features[queries:], labels


def by_hand(query: Tensor, bank: Tensor, labels: Tensor, temperature: float) -> dict[int, float]:
    """Votes of one query, as the papers write it."""
    cosines = [float(query @ row / (query.norm() * row.norm())) for row in bank]
    order = sorted(range(len(bank)), key=lambda number: (-cosines[number], number))[:K]
    weights: dict[int, float] = defaultdict(float)
    for number in order:
        weights[int(labels[number])] += math.exp(cosines[number] / temperature)
    return weights


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("rows", [8, 60, 8192])
def test_votes_are_those_of_a_plain_loop(
    temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    queries, bank, labels = made_up()
    found = knn.nearest(queries, bank, torch.arange(60), K)
    voters = labels[knn.numbers_of(found)]
    shares = knn.votes(knn.similarities(found), voters, temperature, CLASSES)
    for query, share in zip(queries, shares, strict=True):
        weights = by_hand(query, bank, labels, temperature)
        total = sum(weights.values())
        expected = [weights.get(label, 0.0) / total for label in range(CLASSES)]
        np.testing.assert_allclose(share.numpy(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("cuts", [[], [30], [40, 57]], ids=["1 shard", "2 shards", "3 shards"])
def test_a_bank_in_shards_is_the_whole_bank(cuts: list[int]) -> None:
    queries, bank, _ = made_up()
    numbers = torch.arange(1000, 1060)
    whole = knn.nearest(queries, bank, numbers, K)
    # Mixed up, and the last of three shards has fewer images than neighbours are asked for.
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    parts = order.tensor_split(cuts)
    lists = [knn.nearest(queries, bank[part], numbers[part], K) for part in parts]
    assert torch.equal(knn.merged(lists, K), whole)
    assert torch.equal(knn.merged(lists[::-1], K), whole)


def test_neighbours_have_their_similarity_and_number() -> None:
    queries, bank, _ = made_up()
    numbers = torch.arange(60) + 2**32 - 60  # As large as they get.
    found = knn.nearest(queries, bank, numbers, 60)
    cosines, rows = (queries @ bank.T).sort(dim=1, descending=True)
    assert cosines.min() < 0
    assert torch.equal(knn.numbers_of(found), numbers[rows])
    torch.testing.assert_close(knn.similarities(found), cosines, rtol=0, atol=2**-30)


def test_opposite_and_equal_features_are_the_ends() -> None:
    query = F.normalize(torch.ones(1, 3), dim=1)
    bank = torch.cat([-query, query])
    found = knn.nearest(query, bank, torch.tensor([4, 9]), 2)
    assert knn.numbers_of(found).tolist() == [[9, 4]]
    assert knn.similarities(found).tolist()[0] == pytest.approx([1, -1], abs=1e-6)


def test_of_equal_images_the_first_goes_before() -> None:
    queries, bank, _ = made_up()
    twice = torch.cat([bank, bank])
    found = knn.nearest(queries, twice, torch.arange(120), 2 * K)
    numbers = knn.numbers_of(found)
    assert torch.equal(numbers[:, 1::2], numbers[:, ::2] + 60)
    once = knn.numbers_of(knn.nearest(queries, bank, torch.arange(60), K))
    assert torch.equal(numbers[:, ::2], once)


def test_only_classes_with_a_vote_are_answers() -> None:
    # One neighbour votes, for class 3: the four other places of the top five are nobody's.
    shares = knn.votes(torch.ones(5, 1), torch.full((5, 1), 3), 0.07, 5)
    assert num_correct(shares, torch.arange(5), (1, 5), above=0).tolist() == [1, 1]


def test_a_small_temperature_leaves_the_nearest_alone() -> None:
    shares = knn.votes(torch.tensor([[0.9, 0.8, 0.8]]), torch.tensor([[2, 0, 0]]), 1e-5, 3)
    assert shares.tolist() == [[0, 0, 1]]


def test_features_are_the_mean_map_of_length_one() -> None:
    torch.manual_seed(0)
    encoder = ConvNeXtV2.from_size("pocket", num_classes=0, stem_stride=1).eval()
    images = torch.randn(3, 3, 16, 24)
    features = knn.pooled(encoder, images)
    means = encoder(images).flatten(2).mean(dim=2)
    torch.testing.assert_close(features, means / means.square().sum(1, keepdim=True).sqrt())
    assert knn.pooled(encoder.bfloat16(), images.bfloat16()).dtype == torch.float32


def test_features_that_are_not_finite_are_refused() -> None:
    encoder = ConvNeXtV2.from_size("pocket", num_classes=0, stem_stride=1)
    torch.nn.init.constant_(encoder.downsample_layers[0][0].bias, math.nan)  # type: ignore[index]
    with pytest.raises(ValueError, match="diverged"):
        knn.pooled(encoder, torch.randn(1, 3, 16, 16))
