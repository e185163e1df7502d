"""Tasks: losses, metrics, and on what a sample's mask depends."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.masking import sample_masks
from convnextv2.tasks import Normalize
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.classify import ClassCounts, ClassifyTask
from convnextv2.tasks.pretrain import PretrainTask

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def images_of(indices: list[int], side: int = 16) -> Tensor:
    return torch.stack(
        [
            torch.randint(
                0,
                256,
                (side, side, 3),
                dtype=torch.uint8,
                generator=torch.Generator().manual_seed(index),
            )
            for index in indices
        ]
    )


def batch_of(indices: list[int], epoch: int = 0) -> Batch:
    labels = torch.tensor([index % 4 for index in indices])
    return Batch(images_of(indices), labels, torch.tensor(indices), epoch)


def normalised_by_hand(images: Tensor) -> Tensor:
    values = images.numpy().astype(np.float64) / 255
    return torch.from_numpy((values - MEAN) / STD).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_normalised_as_imagenets(dtype: torch.dtype) -> None:
    images = images_of([1, 2])
    normalised = Normalize()(images, dtype)
    assert normalised.dtype == dtype
    torch.testing.assert_close(
        normalised, normalised_by_hand(images).to(dtype), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("stored", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_images_are_normalised_in_fp32_and_rounded_once(
    stored: torch.dtype, dtype: torch.dtype
) -> None:
    images, normalize = images_of([1, 2]).to(stored), Normalize()
    expected = ((images.float() - normalize.mean) / normalize.std).to(dtype)
    assert torch.equal(normalize(images, dtype), expected.permute(0, 3, 1, 2))


def test_the_constants_are_no_weights() -> None:
    task = ClassifyTask(ConvNeXtV2.from_size("pocket", num_classes=4))
    assert all(name.startswith("model.") for name in task.state_dict())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_is_smoothed_cross_entropy(smoothing: float) -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=4, stem_stride=1)
    batch = batch_of([3, 4, 5, 6, 9])
    output = ClassifyTask(model, label_smoothing=smoothing)(batch)

    logits = model(normalised_by_hand(batch.images))
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    right = log_p[torch.arange(5), batch.labels]
    by_hand = -((1 - smoothing) * right + smoothing * log_p.mean(dim=1)).mean()
    torch.testing.assert_close(output.loss, by_hand, rtol=1e-5, atol=1e-6)
    pytorchs = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    torch.testing.assert_close(output.loss, pytorchs, rtol=1e-5, atol=1e-6)
    num_correct = (logits.argmax(dim=1) == batch.labels).sum().item()
    assert output.metrics["accuracy"].item() == pytest.approx(num_correct / 5)
    assert not output.metrics["accuracy"].requires_grad


def test_a_bf16_model_is_fed_bf16_and_scored_in_fp32() -> None:
    task = ClassifyTask(ConvNeXtV2.from_size("pocket", num_classes=4, stem_stride=1)).bfloat16()
    assert task.logits(batch_of([1])).dtype == torch.float32
    assert task(batch_of([1])).loss.isfinite()


LOGITS = torch.tensor(
    [
        [9.0, 1, 2, 3, 4, 5, 6],  # right
        [1.0, 9, 8, 7, 6, 5, 4],  # label 5: fifth best
        [1.0, 9, 8, 7, 6, 5, 4],  # label 6: sixth best
        [0.0, 9, 1, 2, 3, 4, 5],  # right
        [0.0, 1, 9, 2, 3, 4, 5],  # label 1: among the worst two
    ]
)
LABELS = torch.tensor([0, 5, 6, 1, 1])


@pytest.mark.parametrize("confusion", [True, False])
def test_images_are_counted_by_class(confusion: bool) -> None:
    counts = ClassCounts.empty(7, confusion=confusion)
    counts.update(LOGITS, LABELS)
    assert counts.images.tolist() == [1, 2, 0, 0, 0, 1, 1]
    assert counts.correct.tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert counts.top5_correct == 3
    recall = counts.per_class
    assert [recall[0], recall[1], recall[5], recall[6]] == [1.0, 0.5, 0.0, 0.0]
    assert all(math.isnan(recall[empty]) for empty in (2, 3, 4))


def test_confusion_is_counted_by_true_and_predicted_class() -> None:
    counts = ClassCounts.empty(7, confusion=True)
    counts.update(LOGITS, LABELS)
    # The same mistake again, twice in a batch.
    counts.update(LOGITS[[2, 2]], LABELS[[2, 2]])
    expected = np.zeros((7, 7), int)
    for true, predicted in zip([0, 5, 6, 1, 1, 6, 6], [0, 1, 1, 1, 2, 1, 1], strict=True):
        expected[true, predicted] += 1
    assert counts.confusion is not None
    np.testing.assert_array_equal(counts.confusion.numpy(), expected)


def test_workers_counts_add_up() -> None:
    whole, first, second = (ClassCounts.empty(7, confusion=True) for _ in range(3))
    whole.update(LOGITS, LABELS)
    first.update(LOGITS[:2], LABELS[:2])
    second.update(LOGITS[2:], LABELS[2:])
    for one, other, both in zip(first.tensors, second.tensors, whole.tensors, strict=True):
        assert torch.equal(one + other, both)


def test_with_fewer_than_five_classes_top5_is_every_image() -> None:
    counts = ClassCounts.empty(3, confusion=False)
    counts.update(torch.tensor([[1.0, 2, 3], [3.0, 2, 1]]), torch.tensor([0, 0]))
    assert (counts.correct.sum(), counts.top5_correct) == (1, 2)


def fcmae() -> FCMAE:
    torch.manual_seed(0)
    return FCMAE.from_size("pocket", image_size=16, patch_size=8, stem_stride=1, decoder_dim=16)


def test_pretraining_hides_what_belongs_to_the_sample() -> None:
    model = fcmae()
    task = PretrainTask(model, seed=3)
    indices = [5, 9, 2]
    masks = sample_masks(seed=3, epoch=7, indices=indices, num_patches=4, mask_ratio=0.6)
    expected = model(normalised_by_hand(images_of(indices)), mask=masks).loss
    torch.testing.assert_close(task(batch_of(indices, epoch=7)).loss, expected)


def test_what_a_sample_adds_to_the_loss_does_not_depend_on_its_batch() -> None:
    task = PretrainTask(fcmae().double(), seed=3)
    alone = [task(batch_of([index])).loss for index in (5, 9, 2)]
    together = task(batch_of([2, 5, 9])).loss
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-7, atol=0)


def test_every_epoch_and_seed_hides_something_else() -> None:
    model = fcmae()
    task, indices = PretrainTask(model, seed=3), [5, 9, 2, 4]
    first = task(batch_of(indices)).loss
    assert task(batch_of(indices)).loss == first
    assert task(batch_of(indices, epoch=1)).loss != first
    assert PretrainTask(model, seed=4)(batch_of(indices)).loss != first


def test_pretraining_trains_every_parameter() -> None:
    task = PretrainTask(fcmae(), seed=0)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    task(batch_of([0, 1, 2])).loss.backward()
    without = [n for n, p in task.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_loss_of_mixed_images_is_timms() -> None:
    """timm: soft targets of the smoothed labels, mixed, and their cross entropy."""
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=5, stem_stride=1)
    task = ClassifyTask(model, label_smoothing=0.1)
    images = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)
    labels, shares = torch.tensor([0, 3, 1, 1]), torch.tensor([0.9, 0.2, 0.5, 0.0])
    batch = Batch(images, labels, torch.arange(4), 0, shares)
    assert batch.partner_labels is not None
    assert batch.partner_labels.tolist() == [3, 0, 1, 1]
    targets = torch.stack(
        [
            mixup_target(labels[[row, row ^ 1]], 5, lam=float(shares[row]), smoothing=0.1)[0]
            for row in range(4)
        ]
    )
    expected = SoftTargetCrossEntropy()(task.logits(batch), targets)
    torch.testing.assert_close(task(batch).loss, expected)


def test_with_the_head_alone_trained_the_rest_is_frozen() -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2.from_size("pocket", num_classes=4, stem_stride=1, drop_path=0.5)
    task = ClassifyTask(model, trainable="head").train()
    maps: list[Tensor] = []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda block, given, output: maps.append(output))  # type: ignore[index]
    batch = batch_of([0, 1, 2])
    loss = task(batch).loss
    # No stochastic depth, although the task is in training mode; nothing to compute gradients by.
    assert task(batch).loss == loss == task.eval()(batch).loss
    assert not any(output.requires_grad for output in maps)
    loss.backward()
    assert [name for name, p in task.named_parameters() if p.grad is not None] == [
        "model.head.weight",
        "model.head.bias",
    ]
    task.train()
    assert task.training
    assert not any(module.training for module in model.modules())


def test_scores_come_out_detached() -> None:
    task = ClassifyTask(ConvNeXtV2.from_size("pocket", num_classes=4, stem_stride=1))
    batch = batch_of([0, 1, 2])
    scores = task(batch).scores
    assert scores is not None
    assert torch.equal(scores, task.logits(batch))
    assert not scores.requires_grad
