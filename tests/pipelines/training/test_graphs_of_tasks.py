"""What tasks compute for a CUDA graph is what they compute anyway, also replayed on new batches."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from cluster.engine.cuda_graph import GraphedForward
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.kernels import native
from convnextv2.tasks.batch import Batch
from convnextv2.tasks.classify import ClassifyTask
from convnextv2.tasks.pretrain import PretrainTask
from pipelines.doctor.gpu.workload import Pretraining
from tests import cuda_graphs

SIDE, IMAGES, CLASSES = 32, 4, 5


def batch_of(seed: int, *, mixed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), generator=generator).byte()
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    shares = torch.rand(IMAGES, generator=generator) if mixed else None
    return Batch(pixels, labels, 100 * seed + torch.arange(IMAGES), seed, shares)


def pretraining(decoder: str = "convnext", *, norm_pix_loss: bool = True) -> PretrainTask:
    model = FCMAE.from_size(
        "pocket", image_size=SIDE, patch_size=16, stem_stride=2, decoder=decoder, decoder_dim=64,
        norm_pix_loss=norm_pix_loss,
    )  # fmt: skip
    return PretrainTask(model, seed=3)


def classifier(trainable: Literal["all", "head"] = "all") -> ClassifyTask:
    model = ConvNeXtV2.from_size("pocket", num_classes=CLASSES, stem_stride=2, drop_path=0.3)
    return ClassifyTask(model, label_smoothing=0.1, trainable=trainable)


CASES: dict[str, tuple[Callable[[], PretrainTask | ClassifyTask], bool]] = {
    "pretraining": (pretraining, False),
    "pretraining-plain-pixels": (lambda: pretraining(norm_pix_loss=False), False),
    "pretraining-unet": (lambda: pretraining("unet"), False),
    "pretraining-transformer": (lambda: pretraining("transformer"), False),
    "classifier": (classifier, False),
    "classifier-mixed": (classifier, True),
    "probe": (lambda: classifier("head"), False),
}


def losses_and_gradients(
    task: nn.Module, forward: Callable[[Batch], Any], *, mixed: bool
) -> list[Tensor]:
    found = []
    torch.manual_seed(1)
    for seed in (1, 2, 3):
        out = forward(batch_of(seed, mixed=mixed))
        out.loss.backward()
        found += [out.loss.detach(), *out.metrics.values()]
    return [*found, *(each.grad for each in task.parameters() if each.grad is not None)]


@pytest.mark.parametrize("case", CASES)
def test_replays_compute_what_the_task_computes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled kernels are called past PyTorch's dispatcher, where the fake graph cannot see them.
    monkeypatch.setattr(native, "usable", lambda *tensors: False)
    cuda_graphs.install(monkeypatch)
    build, mixed = CASES[case]
    torch.manual_seed(0)
    task = build()
    expected = losses_and_gradients(task, task.forward, mixed=mixed)
    task.zero_grad(set_to_none=True)
    replayed = losses_and_gradients(task, GraphedForward(task), mixed=mixed)
    assert cuda_graphs.FakeGraph.calls == ["record"] * 2 + ["replay"] * 6
    assert len(replayed) == len(expected)
    for ours, theirs in zip(replayed, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_the_check_of_a_gpu_can_record_its_workload() -> None:
    torch.manual_seed(0)
    task = Pretraining(pretraining().model)
    pixels = batch_of(1).images
    assert torch.equal(task.compute(*task.fixed_inputs(pixels)).loss, task(pixels).loss)
