"""Resuming: bitwise on the same number of workers, within rounding on any other.

`Toy` is trained for 100 steps in legs, each with its own number of workers, ZeRO stage and
precision, and each resumed from the checkpoint of the one before. The reference is an uninterrupted
run in plain PyTorch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.fragment_files import StateFiles
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import CheckpointError, latest_good
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from tests.cluster.engine.toy import (
    BATCH,
    Toy,
    computed_with,
    go_on,
    group_settings,
    kept,
    new_engine,
    notes,
    plain,
)
from tests.cluster.process_group import run_group

Stage = Literal[0, 1, 2, 3]
EMA = 0.9
STEPS, HALF = 6, 3
RUNS: list[tuple[Stage, Precision]] = [
    (stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")
]
pytestmark = pytest.mark.slow


def settings(stage: Stage, precision: Precision = "fp32", ema: bool = True) -> EngineSettings:
    decay = EMA if ema else None
    return EngineSettings(zero=ZeroSettings(stage=stage), precision=precision, ema_decay=decay)


def save(engine: DeepSpeedEngine, root: Path, step: int) -> None:
    saver = Saver(root, KeepPolicy(last=2))
    saver.save(step, engine.fragments, notes(engine))
    saver.wait()


def resume(engine: DeepSpeedEngine, root: Path) -> int:
    found = latest_good(root).found
    assert found is not None
    engine.restore(found.path, found.notes)
    return found.step


def straight_and_resumed(folder: Path) -> None:
    """For every stage and precision: save halfway, finish, then resume and repeat the half."""
    found: dict[Any, Any] = {}
    for run in RUNS:
        root = folder / "-".join(map(str, run))
        engine = new_engine(settings(*run), micro=2)
        saver = Saver(root, KeepPolicy())
        metrics = go_on(engine, 0, HALF, micro=2)
        saver.save(HALF, engine.fragments, notes(engine))
        half = kept(engine)
        metrics += go_on(engine, HALF, STEPS, micro=2)
        saver.wait()
        again = new_engine(settings(*run), seed=1, micro=2)
        assert resume(again, root) == HALF
        restored = kept(again)
        found[run] = {
            "half": (half, restored),
            "metrics": (metrics[HALF:], go_on(again, HALF, STEPS, micro=2)),
            "kept": (kept(engine), kept(again)),
            "weights": (computed_with(engine), computed_with(again)),
        }
        assert group_settings(again) == group_settings(engine)
        assert group_settings(again)["weight_decay"] == [0.1, 0.0]
    for stage in (0, 1, 2, 3):
        found["frozen", stage] = frozen_and_resumed(folder / f"frozen-{stage}", stage)
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


def frozen_and_resumed(root: Path, stage: Stage) -> dict[str, Any]:
    """A frozen layer is saved and restored like the others, but has no optimizer moments."""
    engine = new_engine(settings(stage), frozen=True)
    go_on(engine, 0, HALF)
    save(engine, root, HALF)
    again = new_engine(settings(stage), frozen=True)
    resume(again, root)
    dist.barrier()
    found = latest_good(root).found
    assert found is not None
    files = StateFiles(found.path)
    return {
        "kinds": {name: sorted(files.kinds[name]) for name in files},
        "still": files.whole(WEIGHT, "still.weight"),
        "metrics": (go_on(engine, HALF, STEPS), go_on(again, HALF, STEPS)),
        "weights": (computed_with(engine), computed_with(again)),
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_frozen_layer_goes_along(halves: list[dict[Any, Any]], stage: int) -> None:
    found = halves[0]["frozen", stage]
    assert found["kinds"]["still.weight"] == found["kinds"]["still.bias"] == [WEIGHT]
    assert found["kinds"]["head.weight"] == [EMA_WEIGHT, "exp_avg", "exp_avg_sq", WEIGHT]
    assert torch.equal(found["still"], Toy().still.weight)
    assert found["metrics"][0] == found["metrics"][1]
    torch.testing.assert_close(*found["weights"], rtol=0, atol=0)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("halves")
    run_group(straight_and_resumed, 2, folder, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_run_is_the_straight_run_bitwise(
    halves: list[dict[Any, Any]], rank: int, run: tuple[Any, ...]
) -> None:
    found = halves[rank][run]
    straight, resumed = found["metrics"]
    assert straight == resumed
    for what in ("half", "kept", "weights"):
        straight, resumed = found[what]
        assert straight.keys() == resumed.keys()
        torch.testing.assert_close(resumed, straight, rtol=0, atol=0)


@dataclass(frozen=True)
class Leg:
    """Steps up to `until`, on this many workers."""

    workers: int
    stage: Stage
    until: int
    precision: Precision = "fp32"


def run_leg(leg: Leg, root: Path) -> None:
    engine = new_engine(settings(leg.stage, leg.precision), seed=leg.until)
    first = resume(engine, root) if root.exists() else 0
    if not first:
        engine = new_engine(settings(leg.stage, leg.precision))
    dist.barrier()
    metrics = go_on(engine, first, leg.until)
    save(engine, root, leg.until)
    if dist.get_rank() == 0:
        torch.save(metrics, root / f"metrics-{leg.until}.pt")


ROADS: dict[str, list[Leg]] = {
    "1-2-4-1 workers": [Leg(1, 1, 25), Leg(2, 1, 50), Leg(4, 1, 75), Leg(1, 1, 100)],
    "every stage": [Leg(2, 1, 20), Leg(2, 2, 40), Leg(2, 3, 60), Leg(2, 0, 80), Leg(2, 1, 100)],
    "all at once": [Leg(1, 0, 25), Leg(4, 3, 50), Leg(2, 2, 75), Leg(1, 3, 100)],
}


@pytest.mark.parametrize(
    "road",
    ["1-2-4-1 workers", *(pytest.param(road, marks=pytest.mark.soak) for road in list(ROADS)[1:])],
)
def test_a_run_that_changes_its_workers_stays_on_the_straight_run(
    road: str, tmp_path: Path
) -> None:
    root = tmp_path / "checkpoints"
    losses: list[float] = []
    for number, leg in enumerate(ROADS[road]):
        meeting = tmp_path / f"leg-{number}"
        meeting.mkdir()
        run_group(run_leg, leg.workers, meeting, leg, root)
        losses += [point["loss"] for point in torch.load(root / f"metrics-{leg.until}.pt")]
    expected = plain(100, ema_decay=EMA)
    assert len(losses) == 100
    learned = sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert learned, "equality would mean little"
    assert losses == pytest.approx(expected["loss"], rel=2e-3, abs=1e-4)
    last = latest_good(root).found
    assert last is not None
    assert_near(last.path, expected, rtol=0.02, atol=2e-3)


def assert_near(checkpoint: Path, expected: dict[str, Any], rtol: float, atol: float) -> None:
    """Check that weights and their average are those of the plain run's last step."""
    for kind, name in ((WEIGHT, "weights"), (EMA_WEIGHT, "average")):
        files = StateFiles(checkpoint)
        found = {parameter: files.whole(kind, parameter) for parameter in files}
        torch.testing.assert_close(found, expected[name][-1], rtol=rtol, atol=atol)


def test_precision_may_change_too(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for number, leg in enumerate([Leg(2, 1, 3, "bf16"), Leg(1, 0, 4), Leg(2, 3, 5, "bf16")]):
        meeting = tmp_path / f"leg-{number}"
        meeting.mkdir()
        run_group(run_leg, leg.workers, meeting, leg, root)
    losses = [
        point["loss"] for step in (3, 4, 5) for point in torch.load(root / f"metrics-{step}.pt")
    ]
    assert losses == pytest.approx(plain(5)["loss"], rel=0.005)


def mismatches(root: Path) -> None:
    """Checkpoints that do not fit the engine are refused by all workers, with the reason."""
    engine = new_engine(settings(1, ema=False))
    go_on(engine, 0, 1)
    save(engine, root, 1)
    found = latest_good(root).found
    assert found is not None
    with pytest.raises(CheckpointError, match="holds no average of "):
        new_engine(settings(1)).restore(found.path, found.notes)
    wide = Toy()
    wide.head = torch.nn.Linear(16, 5)
    other = DeepSpeedEngine(
        wide,
        wide.groups(),
        betas=(0.9, 0.95),
        settings=settings(1, ema=False),
        batch_layout=engine_topology(),
        device=torch.device("cpu"),
    )
    with pytest.raises(CheckpointError, match=r"head\.weight has shape \(4, 16\), the model's is"):
        other.restore(found.path, found.notes)
    dist.barrier()
    (found.path / "rank-00001.safetensors").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"is not whole, .*: it lacks \d parameters, such as"):
        new_engine(settings(3, ema=False)).restore(found.path, found.notes)


def engine_topology() -> Any:
    from cluster.batch_layout import BatchLayout

    return BatchLayout(BATCH, 1, dist.get_world_size())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run_group(mismatches, 2, tmp_path, tmp_path / "checkpoints")


def test_a_checkpoint_is_whole_weights_and_average_for_anyone(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    run_group(run_leg, 2, tmp_path, Leg(2, 2, 4), root)
    last = latest_good(root).found
    assert last is not None
    expected = plain(4, ema_decay=EMA)
    assert_near(last.path, expected, rtol=1e-4, atol=1e-6)
