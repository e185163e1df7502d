"""DeepSpeed against plain PyTorch on one process: the same training, whatever is shared.

One group of workers makes all the runs (starting DeepSpeed is what costs); the tests read what it
found. Every run trains `Toy` on global batches of 8, in micro batches of 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from cluster.checkpoint.store import CheckpointError
from cluster.engine.deepspeed_engine import DeepSpeedEngine
from cluster.engine.deepspeed_insides import INSIDES, TESTED_VERSIONS
from cluster.engine.outcome import NonFinite
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from cluster.engine.zero_partitions import partition_of
from cluster.group import mean_and_each
from tests.cluster.engine.toy import (
    BATCH,
    Batch,
    Toy,
    computed_with,
    global_batch,
    go_on,
    group_settings,
    kept,
    micro_batches,
    new_engine,
    plain,
    rate,
)
from tests.cluster.process_group import run_group

Stage = Literal[0, 1, 2, 3]
STEPS = 6
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
WORKERS = (2, 4)
CLIP = 0.6  # Between the gradient norms of the steps, 0.45 to 1.05: some are clipped.
EMA = 0.7  # Reached at the fourth update: warm-up and steady state are both seen.
RUNS = [(stage, precision) for stage in STAGES for precision in PRECISIONS]


def settings(stage: Stage, precision: Precision = "fp32", **others: Any) -> EngineSettings:
    return EngineSettings(zero=ZeroSettings(stage=stage), precision=precision, **others)


def straight(stage: Stage, precision: Precision) -> dict[str, Any]:
    """A run with a moving average, and what skipping a step does after it."""
    engine = new_engine(settings(stage, precision, ema_decay=EMA))
    found: dict[str, Any] = {"metrics": go_on(engine, 0, STEPS), "weights": computed_with(engine)}
    assert engine._ema is not None
    late = engine._ema.updates
    found["late"] = {"read by itself": engine._unsettled is None}
    before = kept(engine)
    found["late"]["averages"] = late, engine._ema.updates
    with engine.evaluating(ema=True) as module:
        found["average"] = computed_with(engine)
        found["average loss"] = module(global_batch(0)).loss.item()
        found["mode"] = engine.module.training
    found["mode after"] = engine.module.training
    found["put back"] = same(before, kept(engine)) and same(found["weights"], computed_with(engine))
    found["groups"] = group_settings(engine)
    found["skipped"] = poisoned(engine, before)
    found["insides"] = without_each_of_the_insides(engine)
    return found


def without_each_of_the_insides(engine: DeepSpeedEngine) -> dict[str, str]:
    """What is said at the start when DeepSpeed's optimizer lacks one of them, by attribute."""
    optimizer = engine._optimizer
    name = type(optimizer).__name__

    def hide(hidden: str) -> Any:
        def read(_: Any, attribute: str) -> Any:
            if attribute == hidden:
                raise AttributeError(attribute)
            return getattr(optimizer, attribute)

        return type(name, (), {"__getattr__": read})()

    said = {}
    for attribute in INSIDES[name].optimizer:
        try:
            partition_of(engine.module, hide(attribute))
        except RuntimeError as error:
            said[attribute] = str(error)
    return said


def poisoned(engine: DeepSpeedEngine, before: dict[str, Any]) -> dict[str, Any]:
    """A step with a NaN in one image of the last worker, and a step with none after it."""
    found: dict[str, Any] = {"metrics": mean_and_each(engine.train_step(poison(), 0.1), 0.0)[0]}
    found["untouched"] = same(before, kept(engine))
    found["counters"] = engine.updates, engine.skipped_steps
    found["next"] = go_on(engine, STEPS, STEPS + 1)[0]
    return found


def poison(*, everywhere: bool = False) -> Iterator[Batch]:
    chosen = everywhere or dist.get_rank() == dist.get_world_size() - 1
    for number, (x, y) in enumerate(micro_batches(STEPS)):
        yield (x * float("nan") if chosen and number == 0 else x), y


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@contextmanager
def asking_for_no_norm() -> Iterator[None]:
    """Whoever in DeepSpeed computes a norm of gradients makes the host wait for a GPU."""
    from deepspeed.runtime import engine
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("DeepSpeed computes the norm")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "clip_grad_norm_", refuse)
        for optimizer in (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3):
            patch.setattr(optimizer, "get_grad_norm_direct", refuse)
        yield


def laboratory(folder: Path) -> None:
    found: dict[Any, Any] = {run: straight(*run) for run in RUNS}
    for stage in STAGES:
        engine = new_engine(settings(stage, grad_clip=CLIP))
        with asking_for_no_norm():
            found["clipped", stage] = go_on(engine, 0, STEPS)
    engine = new_engine(settings(1, max_skipped_steps=3))
    heard = 0
    try:
        while True:
            engine.train_step(poison(), 0.1)
            heard += 1
    except NonFinite as error:
        found["gave up"] = heard, str(error)
    # Whoever asks hears of it before the next step.
    engine = new_engine(settings(1, max_skipped_steps=1))
    engine.train_step(poison(), 0.1)
    try:
        found["told when asked"] = engine.updates
    except NonFinite as error:
        found["told when asked"] = str(error)
    # A good step in between starts the count anew.
    engine = new_engine(settings(1, max_skipped_steps=2))
    for _ in range(3):
        engine.train_step(poison(everywhere=True), 0.1)
        go_on(engine, 0, 1)
    found["not in a row"] = engine.updates, engine.skipped_steps
    try:
        engine.restore(folder / "nowhere", {})
    except CheckpointError as error:
        found["nowhere"] = str(error)
    torch.save(found, folder / f"found-{dist.get_rank()}.pt")


@pytest.fixture(scope="module", params=WORKERS)
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def findings(workers: int, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the workers found."""
    folder = tmp_path_factory.mktemp("engines")
    run_group(laboratory, workers, folder, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(workers)]


@pytest.fixture(scope="module")
def found(findings: list[dict[Any, Any]]) -> dict[Any, Any]:
    """What the first worker found; what concerns all of them is compared first."""
    for other in findings[1:]:
        for run in RUNS:
            assert other[run]["metrics"] == findings[0][run]["metrics"]
            assert same(other[run]["weights"], findings[0][run]["weights"])
    return findings[0]


def values(metrics: list[dict[str, float]], name: str = "loss") -> list[float]:
    return [point[name] for point in metrics]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", STAGES)
def test_shared_training_is_plain_training(found: dict[Any, Any], stage: Stage) -> None:
    expected = plain(STEPS)
    run = found[stage, "fp32"]
    assert values(run["metrics"]) == pytest.approx(expected["loss"], rel=1e-5)
    assert values(run["metrics"], "grad_norm") == pytest.approx(expected["grad_norm"], rel=1e-4)
    torch.testing.assert_close(run["weights"], expected["weights"][-1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_are_means_over_all_images(found: dict[Any, Any], stage: Stage) -> None:
    toy = Toy()
    states = plain(STEPS)["weights"]
    for step, point in enumerate(found[stage, "fp32"]["metrics"]):
        assert point["accuracy"] == pytest.approx(toy(global_batch(step)).metrics["accuracy"])
        toy.load_state_dict(states[step])


@pytest.mark.parametrize("run", RUNS)
def test_the_moving_average_is_the_plain_one(found: dict[Any, Any], run: tuple[Any, ...]) -> None:
    expected = plain(STEPS, ema_decay=EMA)["average"][-1]
    rtol, atol = (1e-4, 1e-6) if run[1] == "fp32" else (0.05, 0.05)
    average = {name: value.float() for name, value in found[run]["average"].items()}
    torch.testing.assert_close(average, expected, rtol=rtol, atol=atol)
    assert not same(found[run]["average"], found[run]["weights"])
    toy = Toy()
    toy.load_state_dict(average)
    near = 1e-5 if run[1] == "fp32" else 0.01
    assert found[run]["average loss"] == pytest.approx(toy(global_batch(0)).loss.item(), rel=near)
    assert (found[run]["mode"], found[run]["mode after"]) == (False, True)
    assert found[run]["put back"]


@pytest.mark.parametrize("run", RUNS)
def test_a_group_with_rate_zero_stands_still(found: dict[Any, Any], run: tuple[Any, ...]) -> None:
    after = found[run]["weights"]
    for name, value in Toy().state_dict().items():
        still = torch.equal(after[name], value.to(after[name].dtype))
        assert still is name.startswith("still."), name


@pytest.mark.parametrize("run", RUNS)
def test_a_group_for_every_decay_and_a_rate_for_every_layer(
    findings: list[dict[Any, Any]], run: tuple[Any, ...]
) -> None:
    scales = set()
    for found in findings:
        groups = found[run]["groups"]
        assert groups["lr"] == [rate(STEPS - 1)] * 2
        assert groups["weight_decay"] == [0.1, 0.0]
        scales |= set(groups["scales"])
    assert scales == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_near(found: dict[Any, Any], stage: Stage) -> None:
    run, expected = found[stage, "bf16"], plain(STEPS)["loss"]
    assert {value.dtype for value in run["weights"].values()} == {torch.bfloat16}
    assert values(run["metrics"]) == pytest.approx(expected, rel=0.005)
    assert values(run["metrics"]) != pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_clipped_as_a_whole(found: dict[Any, Any], stage: Stage) -> None:
    clipped = plain(STEPS, CLIP)
    assert clipped["loss"] != pytest.approx(plain(STEPS)["loss"], rel=1e-4)
    assert values(found["clipped", stage]) == pytest.approx(clipped["loss"], rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_one_bad_image_has_all_workers_skip_the_step(
    findings: list[dict[Any, Any]], run: tuple[Any, ...]
) -> None:
    for found in findings:
        skipped = found[run]["skipped"]
        assert math.isnan(skipped["metrics"]["grad_norm"])
        assert skipped["untouched"]
        assert skipped["counters"] == (STEPS, 1)
        assert skipped["next"] == findings[0][run]["skipped"]["next"]
        assert math.isfinite(skipped["next"]["grad_norm"])


@pytest.mark.parametrize("stage", STAGES)
def test_after_a_skipped_step_training_is_plain_again(found: dict[Any, Any], stage: Stage) -> None:
    expected = plain(STEPS + 1)
    assert found[stage, "fp32"]["skipped"]["next"]["loss"] == pytest.approx(
        expected["loss"][STEPS], rel=1e-5
    )


def test_bad_steps_in_a_row_are_an_error_with_the_samples(
    findings: list[dict[Any, Any]], workers: int
) -> None:
    last = global_batch(STEPS)[1][workers - 1 :: workers].tolist()
    assert len(last) == BATCH // workers
    for found in findings:
        heard, message = found["gave up"]
        assert heard == 3, "the step after the third finds that it was one too many"
        assert message.startswith("3 steps in a row had a loss or gradient that is not finite")
        assert f"worker {workers - 1}: loss nan, samples {', '.join(map(str, last))}. " in message
        assert "worker 0: loss 1." in message


def test_whoever_asks_hears_of_bad_steps_before_the_next(found: dict[Any, Any]) -> None:
    assert "1 steps in a row had a loss or gradient" in found["told when asked"]


@pytest.mark.parametrize("run", RUNS)
def test_a_step_is_settled_when_the_next_is_under_way_or_somebody_asks(
    found: dict[Any, Any], run: tuple[Any, ...]
) -> None:
    assert found[run]["late"] == {"read by itself": False, "averages": (STEPS - 1, STEPS)}


def test_only_bad_steps_in_a_row_count(found: dict[Any, Any]) -> None:
    assert found["not in a row"] == (3, 3)


OPTIMIZERS = {
    **dict.fromkeys([(1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16")], "DeepSpeedZeroOptimizer"),
    **dict.fromkeys([(3, "fp32"), (3, "bf16")], "DeepSpeedZeroOptimizer_Stage3"),
    (0, "bf16"): "FP16_UnfusedOptimizer",
    (0, "fp32"): "LayerwiseAdamW",
}


@pytest.mark.parametrize("run", RUNS)
def test_what_deepspeed_moved_is_said_by_name_at_the_start(
    found: dict[Any, Any], run: tuple[Any, ...]
) -> None:
    name, said = OPTIMIZERS[run], found[run]["insides"]
    assert set(said) == set(INSIDES[name].optimizer)
    for attribute, sentence in said.items():
        assert f"DeepSpeed {version('deepspeed')} has no {name}.{attribute};" in sentence
        assert f"was tested with {TESTED_VERSIONS[0]}" in sentence


def test_the_installed_deepspeed_is_one_that_was_tested() -> None:
    assert version("deepspeed") in TESTED_VERSIONS, "run the tests of the engine, then add it"


def test_nothing_to_restore_is_an_error(found: dict[Any, Any]) -> None:
    assert "is not whole, or of another model: it lacks 6 parameters" in found["nowhere"]
