"""The encoder is one graph for torch.compile: no break, the same losses and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convnextv2 import kernels
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.fcmae.sparse import Backend
from convnextv2.tasks.classify import ClassifyTask
from convnextv2.tasks.pretrain import PretrainTask
from tests.convnextv2.tasks.test_tasks import batch_of

pytestmark = pytest.mark.slow


def randomised(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_compiled_equals_eager(backend: str) -> None:
    torch.manual_seed(0)
    model = ConvNeXtV2(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=5)
    randomised(model)
    images = torch.randn(2, 3, 64, 32)
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    expected = model(images)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    logits = compiled(images)
    got = torch.autograd.grad(logits.square().sum(), list(model.parameters()))

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def encoder(num_classes: int, checkpoint_stages: tuple[int, ...]) -> ConvNeXtV2:
    return ConvNeXtV2(
        depths=(1, 1, 1, 1),
        dims=(8, 12, 16, 20),
        num_classes=num_classes,
        stem_stride=1,
        checkpoint_stages=checkpoint_stages,
    )


def pretraining(backend: Backend, again: tuple[int, ...] = ()) -> tuple[nn.Module, ConvNeXtV2]:
    model = FCMAE(encoder(0, again), image_size=16, patch_size=8, decoder_dim=16, backend=backend)
    return PretrainTask(model, seed=0), model.encoder


def classifying(again: tuple[int, ...] = ()) -> tuple[nn.Module, ConvNeXtV2]:
    model = encoder(4, again)
    return ClassifyTask(model, label_smoothing=0.1), model


def trained(task: nn.Module) -> tuple[list[float], list[str]]:
    """Losses of four steps, the last on a smaller batch, and the names of what was trained."""
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(4):
        loss: Tensor = task(batch_of(list(range(8 * step, 8 * step + (4 if step < 3 else 2))))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [name for name, _ in task.named_parameters()]


@pytest.mark.parametrize(
    "build",
    [
        lambda: pretraining("gather"),
        lambda: pretraining("masked-dense"),
        lambda: pretraining("gather", (0, 2)),
        classifying,
        lambda: classifying((0, 2)),
    ],
    ids=[
        "gather",
        "masked-dense",
        "gather, checkpointed",
        "classifier",
        "classifier, checkpointed",
    ],
)
def test_training_with_a_compiled_encoder(
    build: Callable[[], tuple[nn.Module, ConvNeXtV2]],
) -> None:
    """The very thing a recipe's `compile` does, but for the code generator, which takes minutes."""
    torch.manual_seed(0)
    plain, _ = build()
    torch.manual_seed(0)
    task, inner = build()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    inner.compile(backend=count, fullgraph=True)
    expected, names = trained(plain)
    losses, names_compiled = trained(task)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len(set(losses)) == 4
    assert names_compiled == names
    assert list(task.state_dict()) == list(plain.state_dict())
    # One for the first size of a batch, one for all others.
    assert 1 <= len(graphs) <= 2


def test_kernels_of_a_gpu_are_operators_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are registered while the graph is traced. Nothing is run: there may be no GPU."""
    monkeypatch.setattr(kernels.native, "usable", lambda *tensors: False)
    monkeypatch.setattr(kernels.gpu, "usable", lambda *tensors: True)
    called: list[str] = []

    def list_calls(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return lambda *inputs: (inputs[0],)

    def layers(x: Tensor) -> Tensor:
        x, _shortcut = kernels.depthwise(x, torch.ones(4, 1, 7, 7), torch.zeros(4))
        return kernels.gelu_grn(x, torch.ones(4), torch.zeros(4), 1)

    torch._dynamo.reset()
    torch.compile(layers, backend=list_calls, fullgraph=True)(torch.randn(1, 8, 8, 4))
    assert {"convnextv2.depthwise.default", "convnextv2.gelu_grn.default"} <= set(called)


@pytest.mark.soak
@pytest.mark.parametrize("build", [lambda: pretraining("gather"), classifying])
def test_training_with_generated_code(
    build: Callable[[], tuple[nn.Module, ConvNeXtV2]],
) -> None:
    torch.manual_seed(0)
    plain, _ = build()
    torch.manual_seed(0)
    task, inner = build()
    torch._dynamo.reset()
    inner.compile()
    assert trained(task)[0] == pytest.approx(trained(plain)[0], rel=1e-4)
