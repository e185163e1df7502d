"""Images of several classes: the loss, mixing, and average precision against scikit-learn's."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from timm.loss import BinaryCrossEntropy

from convnextv2.encoder import ConvNeXtV2
from convnextv2.tasks.average_precision import average_precision
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.classify import ClassifyTask, cross_entropies
from convnextv2.tasks.topk import in_top_k

TARGETS = torch.tensor(
    [[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]
)


@pytest.fixture
def batch() -> Batch:
    drawn = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=drawn)
    return Batch(images, TARGETS, torch.arange(6), 0)


def task_of(smoothing: float) -> ClassifyTask:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=4, stem_stride=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ClassifyTask(model, label_smoothing=smoothing)


def test_the_loss_is_timms_binary_cross_entropy(batch: Batch) -> None:
    task = task_of(0.0)
    output = task(batch)
    logits = task.logits(batch)
    torch.testing.assert_close(output.loss, BinaryCrossEntropy(smoothing=0)(logits, TARGETS))
    assert output.scores is not None
    right = [TARGETS[row, best] for row, best in enumerate(logits.argmax(dim=1))]
    assert output.metrics["accuracy"].item() == pytest.approx(sum(map(float, right)) / 6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


def test_smoothing_moves_targets_towards_a_half() -> None:
    logits = torch.linspace(-3, 3, 24).view(6, 4).double()
    by_hand = torch.zeros(6, dtype=torch.float64)
    for target, weight in ((TARGETS, 0.8), (torch.full_like(TARGETS, 0.5), 0.2)):
        p = logits.sigmoid()
        by_hand -= weight * (target * p.log() + (1 - target) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(cross_entropies(logits, TARGETS.double(), 0.2), by_hand)


def test_mixed_images_have_mixed_targets(batch: Batch) -> None:
    shares = torch.tensor([0.9, 0.4, 1.0, 0.5, 0.3, 0.0])
    task = task_of(0.1)
    loss = task(dataclasses.replace(batch, coefficients=shares)).loss
    partners = TARGETS[[1, 0, 3, 2, 5, 4]]
    mixed = shares[:, None] * TARGETS + (1 - shares[:, None]) * partners
    expected = cross_entropies(task.logits(batch), mixed, 0.1).mean()
    torch.testing.assert_close(loss, expected)


def test_a_hit_is_one_of_the_classes() -> None:
    scores = torch.tensor([[3.0, 2, 1, 0]] * 6)
    assert in_top_k(scores, TARGETS, 1).tolist() == [True, False, False, True, False, True]
    assert in_top_k(scores, TARGETS, 2).tolist() == [True, False, True, True, False, True]
    assert in_top_k(scores, TARGETS, 5).tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("levels", [3, 10, 10**6])
@pytest.mark.parametrize("images", [1, 7, 200])
def test_average_precision_is_scikit_learns(levels: int, images: int) -> None:
    """With few levels many scores are equal."""
    rng = np.random.default_rng(images)
    scores = rng.integers(0, levels, (images, 5)).astype(np.float32)
    targets = (rng.random((images, 5)) < [0.05, 0.3, 0.5, 0.9, 0.0]).astype(np.float32)
    found = average_precision(torch.from_numpy(scores), torch.from_numpy(targets))
    for column, value in enumerate(found.tolist()):
        if targets[:, column].any():
            expected = average_precision_score(targets[:, column], scores[:, column])
            assert value == pytest.approx(expected, rel=1e-12)
        else:
            assert np.isnan(value)
