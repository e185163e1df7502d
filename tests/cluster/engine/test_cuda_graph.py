"""A step by replays is the eager step, bit for bit, whatever hooks of ZeRO hang on it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.batch_layout import BatchLayout
from cluster.engine.cuda_graph import GraphedForward, Recording
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from tests import cuda_graphs
from tests.cluster.engine.toy import (
    BATCH,
    BETAS,
    Batch,
    Output,
    Toy,
    go_on,
    kept,
    micro_batches,
    rate,
)
from tests.cluster.process_group import run_group
from tests.cuda_graphs import FakeGraph

STEPS = 3
RUNS: list[tuple[int, Precision]] = [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16")]


class GraphableToy(Toy):
    """With dropout by the device's generator, and `more` layers that only wait for gradients."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        self.more = nn.ModuleList(nn.Linear(4, 4) for _ in range(more))

    def groups(self) -> list[dict[str, Any]]:
        first, *others = super().groups()
        return [first | {"params": [*first["params"], *self.more.parameters()]}, *others]

    def fixed_inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch

    def compute(self, x: Tensor, y: Tensor) -> Output:
        loss, metrics = Toy.forward(self, (x * torch.empty_like(x).bernoulli_(0.5), y))
        for layer in self.more:
            loss = loss + layer(x[:, :4]).square().mean()
        return Output(loss, metrics)

    def forward(self, batch: Batch) -> Output:
        return self.compute(*self.fixed_inputs(batch))


def engine_on_toy(
    stage: int, precision: Precision, *, cuda_graph: bool, more: int = 0, micro: int = 2
) -> DeepSpeedEngine:
    toy = GraphableToy(more)
    return DeepSpeedEngine(
        toy,
        toy.groups(),
        betas=BETAS,
        settings=EngineSettings(
            zero=ZeroSettings.model_validate({"stage": stage}),
            precision=precision,
            grad_clip=0.6,
            ema_decay=0.9,
            cuda_graph=cuda_graph,
        ),
        # By default two micro batches of two: gradients are accumulated.
        batch_layout=BatchLayout(BATCH, micro, dist.get_world_size()),
        device=torch.device("cpu"),
    )


def trained(stage: int, precision: Precision, *, cuda_graph: bool) -> dict[str, Any]:
    engine = engine_on_toy(stage, precision, cuda_graph=cuda_graph)
    torch.manual_seed(dist.get_rank())
    found: dict[str, Any] = {"metrics": go_on(engine, 0, STEPS, micro=2)}
    with engine.evaluating() as module:
        found["evaluated"] = module((torch.ones(3, 8), torch.zeros(3).long())).loss.item()
    found["metrics"] += go_on(engine, STEPS, STEPS + 1, micro=2)
    return found | {"kept": kept(engine)}


def launches_outside(stage: int, more: int) -> Counter[str]:
    """Of a step of one micro batch in fp32, on a toy with `more` layers."""
    engine = engine_on_toy(stage, "fp32", cuda_graph=True, more=more, micro=4)
    go_on(engine, 0, 2, micro=4)
    batches = list(micro_batches(2, micro=4))
    with cuda_graphs.Launches() as launches:
        engine.train_step(batches, rate(2))
    assert launches.inside
    return launches.outside


def laboratory(folder: Path) -> None:
    found: dict[Any, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        cuda_graphs.install(patch)
        for run in RUNS:
            found[run, "eager"] = trained(*run, cuda_graph=False)
            assert FakeGraph.calls == []
            found[run, "graph"] = trained(*run, cuda_graph=True)
            found[run, "calls"] = list(FakeGraph.calls)
            FakeGraph.calls.clear()
        for stage in (0, 1):
            found["outside", stage] = [launches_outside(stage, more) for more in (0, 20)]
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("graphs")
    run_group(laboratory, 2, folder, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_replays_train_as_eager_steps_do(
    findings: list[dict[Any, Any]], run: tuple[int, Precision]
) -> None:
    for found in findings:
        eager, graph = found[run, "eager"], found[run, "graph"]
        assert graph["metrics"] == eager["metrics"]
        assert graph["evaluated"] == eager["evaluated"], "by the module's own forward"
        assert graph["kept"].keys() == eager["kept"].keys()
        for name, tensor in eager["kept"].items():
            assert torch.equal(graph["kept"][name], tensor), name
        losses = [point["loss"] for point in eager["metrics"]]
        assert len(set(losses)) == STEPS + 1, "every step has another loss"
        passes = 2 * (STEPS + 1)  # Two micro batches in a step.
        assert found[run, "calls"] == ["record"] * 2 + ["replay"] * (2 * passes)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1])
def test_what_stays_outside_does_not_grow_with_the_number_of_parameters(
    findings: list[dict[Any, Any]], stage: int
) -> None:
    for found in findings:
        few, many = found["outside", stage]
        assert many - few == Counter()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> GraphableToy:
    """With a layer that is not used."""
    cuda_graphs.install(monkeypatch)
    toy = GraphableToy()
    toy.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    return toy


def batch_of(number: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 8, generator=generator), torch.arange(number) % 4


def recording_of(toy: GraphableToy) -> Recording:
    return Recording(toy.compute, toy.parameters(), batch_of(4))


def test_what_comes_back_does_not_change_with_the_next_replay(toy: GraphableToy) -> None:
    recording = recording_of(toy)
    first = recording.run(batch_of(4))
    value, accuracy = first.loss.item(), first.metrics["accuracy"].item()
    first.loss.backward()
    assert toy.body.weight.grad is not None
    gradient = toy.body.weight.grad.clone()
    second = recording.run(batch_of(4, seed=1))
    assert second.loss.item() != value
    assert (first.loss.item(), first.metrics["accuracy"].item()) == (value, accuracy)
    assert torch.equal(toy.body.weight.grad, gradient)
    assert toy.get_parameter("unused").grad is None


def test_recording_draws_no_random_number_of_the_training(toy: GraphableToy) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    recording_of(toy)
    assert torch.equal(torch.rand(4), expected)


def test_values_of_parameters_may_change_and_their_places_may_not(toy: GraphableToy) -> None:
    recording = recording_of(toy)
    with torch.no_grad():
        toy.head.weight.zero_()
        toy.head.bias.zero_()
    assert recording.run(batch_of(4)).loss.item() == pytest.approx(torch.tensor(4.0).log().item())
    toy.head.weight.data = toy.head.weight.data.clone()
    with pytest.raises(RuntimeError, match="parameters have moved in memory"):
        recording.run(batch_of(4))


@pytest.mark.parametrize("wrong", [batch_of(3), (batch_of(4)[0].double(), batch_of(4)[1])])
def test_inputs_of_another_form_are_refused(wrong: Batch, toy: GraphableToy) -> None:
    with pytest.raises(ValueError, match=r"recorded with.*\(4, 8\).*cuda_graph=false would work"):
        recording_of(toy).run(wrong)


def test_activations_of_an_earlier_pass_are_gone(toy: GraphableToy) -> None:
    recording = recording_of(toy)
    first = recording.run(batch_of(4))
    recording.run(batch_of(4))
    with pytest.raises(RuntimeError, match="each one needs its backward pass before the next"):
        first.loss.backward()


def test_evaluation_is_the_modules_own(toy: GraphableToy) -> None:
    own = toy.forward
    forward = GraphedForward(toy)
    toy.eval()
    torch.manual_seed(0)
    expected = own(batch_of(5)).loss
    torch.manual_seed(0)
    assert torch.equal(forward(batch_of(5)).loss, expected)
    assert FakeGraph.calls == []
