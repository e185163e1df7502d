"""DeepSpeed on two workers against plain PyTorch on one: the same training, whatever is sharded.

One group of workers makes all the runs (starting DeepSpeed is what costs); the tests read what it
found. Every run trains `Toy` on global batches of 8: two workers, two micro batches of 2 each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.checkpoint import CheckpointError, publish
from cluster.engine import (
    TAG,
    DeepSpeedEngine,
    Engine,
    EngineSettings,
    deepspeed_config,
    fp32_weights,
    mean_over_workers,
)
from cluster.topology import Topology
from tests.cluster.workers import run_group

Stage = Literal[0, 1, 2, 3]
STEPS, HALF, BATCH = 6, 3, 8
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
CLIP = 0.6  # Between the gradient norms of the steps, 0.45 to 1.05: some are clipped.
BETAS = (0.9, 0.95)
Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]


class Output(NamedTuple):
    """A tuple, because the hooks of ZeRO-3 look for tensors inside outputs."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Toy(nn.Module):
    """Three layers, one per optimizer group; `still` has lr_scale 0."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.still, self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, batch: Batch) -> Output:
        x, y = batch
        hidden = self.body(self.still(x.to(self.still.weight.dtype)).tanh()).tanh()
        logits = self.head(hidden).float()
        hits = (logits.argmax(1) == y).float().mean()
        return Output(nn.functional.cross_entropy(logits, y), {"accuracy": hits.detach()})

    def groups(self) -> list[dict[str, Any]]:
        settings = [(self.still, 0.0, 0.1), (self.body, 0.5, 0.0), (self.head, 1.0, 0.1)]
        return [
            {"params": list(layer.parameters()), "lr_scale": scale, "weight_decay": decay}
            for layer, scale, decay in settings
        ]


def global_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 8, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def rate(step: int) -> float:
    return 0.05 * (1 + step % 3)


def plain(clip: float = 0.0) -> tuple[list[float], list[Weights]]:
    """Losses and the weights after each step of one process on whole batches."""
    toy = Toy()
    optimizer = torch.optim.AdamW(toy.groups(), betas=BETAS)
    losses, weights = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["lr_scale"]
        out = toy(global_batch(step))
        optimizer.zero_grad()
        out.loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(toy.parameters(), clip)
        optimizer.step()
        losses.append(out.loss.item())
        weights.append({name: value.clone() for name, value in toy.state_dict().items()})
    return losses, weights


def new_engine(settings: EngineSettings, seed: int = 0) -> tuple[Engine, Toy]:
    toy = Toy(seed)
    engine = DeepSpeedEngine(
        toy,
        toy.groups(),
        betas=BETAS,
        settings=settings,
        topology=Topology(BATCH, micro_batch_size=2, world_size=2),
        device=torch.device("cpu"),
    )
    return engine, toy


def micro_batches(step: int) -> Iterator[Batch]:
    x, y = (part[dist.get_rank() :: 2] for part in global_batch(step))
    return zip(x.split(2), y.split(2), strict=True)


def go_on(engine: Engine, first: int, last: int) -> list[dict[str, float]]:
    return [
        mean_over_workers(engine.train_step(micro_batches(step), rate(step)))
        for step in range(first, last)
    ]


def whole_weights(toy: Toy) -> Weights:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(toy.parameters())):
        return {name: value.detach().clone() for name, value in toy.named_parameters()}


def save_and_go_on(folder: Path, settings: EngineSettings) -> dict[str, Any]:
    """A run that saves halfway, and one that loads what it saved and does the second half."""
    engine, toy = new_engine(settings)
    metrics = go_on(engine, 0, HALF)
    engine.save(folder)
    half = whole_weights(toy)
    metrics += go_on(engine, HALF, STEPS)
    resumed_engine, resumed = new_engine(settings, seed=1)
    resumed_engine.load(folder)
    return {
        "metrics": metrics,
        "half": half,
        "weights": whole_weights(toy),
        "resumed metrics": go_on(resumed_engine, HALF, STEPS),
        "resumed weights": whole_weights(resumed),
    }


def full_disk(folder: Path) -> str:
    """Both workers save, the second onto a full disk, then the first; both must hear of it."""
    engine, _ = new_engine(EngineSettings(zero_stage=1))
    heard = []
    states = f"{TAG}/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    for rank, name in ((1, states), (0, "zero_to_fp32.py")):

        def write(directory: Path, rank: int = rank, name: str = name) -> None:
            if dist.get_rank() == rank:
                (directory / TAG).mkdir(exist_ok=True)
                (directory / name).symlink_to("/dev/full")
            engine.save(directory)

        try:
            publish(folder, 1, write, {})
        except CheckpointError as error:
            heard.append(str(error))
    publish(folder, 2, engine.save, {})
    return "\n".join(heard)


def laboratory(folder: Path) -> None:
    found: dict[Any, Any] = {
        stage: save_and_go_on(folder / str(stage), EngineSettings(zero_stage=stage))
        for stage in STAGES
    }
    bf16 = EngineSettings(zero_stage=1, precision="bf16")
    found["bf16"] = save_and_go_on(folder / "bf16", bf16)
    engine, _ = new_engine(EngineSettings(zero_stage=1, grad_clip=CLIP))
    found["clipped"] = go_on(engine, 0, STEPS)
    try:
        engine.load(folder / "nowhere")
    except CheckpointError as error:
        found["nowhere"] = str(error)
    found["full disk"] = full_disk(folder / "full")
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    run_group(laboratory, 2, folder, folder)
    return folder


@pytest.fixture(scope="module", params=[0, 1])
def found(request: pytest.FixtureRequest, folder: Path) -> dict[Any, Any]:
    """What one of the two workers found."""
    content: dict[Any, Any] = torch.load(folder / f"found-{request.param}.pt")
    return content


def losses(metrics: list[dict[str, float]]) -> list[float]:
    return [point["loss"] for point in metrics]


def test_the_configuration_spells_the_arithmetic_and_the_settings() -> None:
    settings = EngineSettings(zero_stage=2, precision="bf16", grad_clip=3.0)
    config = deepspeed_config(settings, Topology(24, 3, 4))
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 3.0
    assert config["zero_optimization"]["stage"] == 2
    assert config["bf16"] == {"enabled": True}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_sharded_training_is_plain_training(found: dict[Any, Any], stage: Stage) -> None:
    expected, weights = plain()
    assert losses(found[stage]["metrics"]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found[stage]["weights"], weights[-1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_means_over_all_images(found: dict[Any, Any], stage: Stage) -> None:
    _, weights = plain()
    toy = Toy()
    for step, point in enumerate(found[stage]["metrics"]):
        assert point["accuracy"] == pytest.approx(toy(global_batch(step)).metrics["accuracy"])
        toy.load_state_dict(weights[step])


@pytest.mark.slow
@pytest.mark.parametrize("run", [*STAGES, "bf16"])
def test_going_on_from_a_save_is_the_straight_run_bitwise(
    found: dict[Any, Any], run: Stage | str
) -> None:
    assert found[run]["resumed metrics"] == found[run]["metrics"][HALF:]
    torch.testing.assert_close(found[run]["resumed weights"], found[run]["weights"], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_exported_weights_are_the_modules(
    found: dict[Any, Any], folder: Path, stage: Stage
) -> None:
    exported = fp32_weights(folder / str(stage))
    torch.testing.assert_close(exported, found[stage]["half"], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("run", [*STAGES, "bf16"])
def test_a_group_with_rate_zero_stands_still(found: dict[Any, Any], run: Stage | str) -> None:
    before, after = Toy().state_dict(), found[run]["weights"]
    for name, value in before.items():
        same = torch.equal(after[name], value.to(after[name].dtype))
        assert same is name.startswith("still."), name


@pytest.mark.slow
def test_bf16_stays_near_and_keeps_fp32_masters(found: dict[Any, Any], folder: Path) -> None:
    expected, _ = plain()
    run = found["bf16"]
    assert {value.dtype for value in run["weights"].values()} == {torch.bfloat16}
    assert losses(run["metrics"]) == pytest.approx(expected, rel=0.03)
    assert losses(run["metrics"]) != pytest.approx(expected, rel=1e-5)
    masters = fp32_weights(folder / "bf16")
    for name, value in run["half"].items():
        assert masters[name].dtype == torch.float32
        torch.testing.assert_close(masters[name].bfloat16(), value, rtol=0, atol=0)
    head = masters["head.weight"]
    assert not torch.equal(head, head.bfloat16().float()), "no master has more digits than bf16"


@pytest.mark.slow
def test_gradients_are_clipped_as_a_whole(found: dict[Any, Any]) -> None:
    clipped, _ = plain(CLIP)
    assert clipped != pytest.approx(plain()[0], rel=1e-4)
    assert losses(found["clipped"]) == pytest.approx(clipped, rel=1e-5)


@pytest.mark.slow
def test_nothing_to_load_is_an_error(found: dict[Any, Any]) -> None:
    assert found["nowhere"].startswith("DeepSpeed found nothing to load in ")


@pytest.mark.slow
def test_a_full_disk_on_one_worker_is_heard_by_all(found: dict[Any, Any], folder: Path) -> None:
    second, first = found["full disk"].splitlines()
    assert "rank 1: " in second, second
    assert "MB were free" in second, "without it nobody would guess why PyTorch failed"
    assert "rank 0: OSError: [Errno 28] No space left on device" in first
    assert [path.name for path in (folder / "full").iterdir()] == ["step-00000002"]
