"""One flipped bit on one worker is found, by all workers, and the worker is named."""

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.engine.divergence import check_replicas, checksum
from cluster.engine.settings import EngineSettings
from cluster.engine.zero_config import Precision, ZeroSettings
from cluster.resilience.conductor import Conductor
from cluster.resilience.faults import Budget, Fault, Quarantine
from cluster.resilience.incidents import Incident
from cluster.workers.current import Diverged
from tests.cluster.engine.toy import go_on, new_engine
from tests.cluster.process_group import run_group
from tests.cluster.resilience.groups import flipped
from tests.cluster.resilience.groups.flipped import Flip
from tests.cluster.resilience.groups.local_agents import LocalPlacer, job

Stage = Literal[0, 1, 2, 3]
INTEGERS = {2: torch.int16, 4: torch.int32}


def flip(weight: Tensor, element: int, bit: int) -> None:
    bits = weight.detach().view(-1).view(INTEGERS[weight.element_size()])
    bits[element] ^= torch.tensor(1 << bit).to(bits.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_bit_counts(dtype: torch.dtype) -> None:
    weights = [torch.randn(3, 2).to(dtype), torch.randn(()).to(dtype)]
    before = checksum(weights).item()
    assert checksum([weight.clone() for weight in weights]).item() == before
    for bit in range(8 * weights[0].element_size()):
        flip(weights[0], 4, bit)
        assert checksum(weights).item() != before
        flip(weights[0], 4, bit)
    assert checksum(weights).item() == before


def engines(stage: Stage, precision: Precision, guilty: int) -> None:
    """Trained alike nobody differs; one bit of one parameter, and everybody hears who does."""
    settings = EngineSettings(zero=ZeroSettings(stage=stage), precision=precision)
    engine = new_engine(settings, micro=2)
    go_on(engine, 0, 3, micro=2)
    engine.check_replicas(3)
    if dist.get_rank() == guilty:
        flip(dict(engine.module.named_parameters())["body.weight"], 5, 0)
    with pytest.raises(Diverged, match=rf"step 3 the weights of worker {guilty} are not") as told:
        engine.check_replicas(3)
    assert told.value.to_blame == (dist.get_rank() == guilty)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "fp32"), (2, "bf16")]
)
def test_the_worker_with_a_flipped_bit_is_named(stage: int, precision: str, tmp_path: Path) -> None:
    run_group(engines, 4, tmp_path, stage, precision, 2)


def two_that_differ() -> None:
    weight = torch.full((2,), float(dist.get_rank()))
    with pytest.raises(Diverged, match="no more than half of them agree") as told:
        check_replicas([weight], 7)
    assert not told.value.to_blame, "of two nobody knows which"


@pytest.mark.slow
def test_of_two_workers_nobody_is_blamed(tmp_path: Path) -> None:
    run_group(two_that_differ, 2, tmp_path)


@pytest.mark.slow
def test_a_group_with_a_flipped_bit_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    noted: list[Incident] = []
    conductor = Conductor(LocalPlacer(3), [3], "flip", note=noted.append)
    conductor.run(job(flipped.run, Flip(tmp_path, rank=1)))
    assert (tmp_path / "fired").exists()
    assert {(each.cause, each.rank, each.node, each.step) for each in noted} == {
        ("divergence", 1, "node-1", 8)
    }
    assert noted[-1].recovered
    done = [int(line) for line in (tmp_path / "steps").read_text().split()]
    assert done == [*range(1, 8), *range(6, 11)], "what the eighth step came to is not counted"


def fault(*, of_group: bool) -> Fault:
    return Fault(
        cause="divergence",
        rank=1,
        node="n",
        host="h",
        phase="compare",
        step=5,
        error="Diverged: after step 5",
        of_group=of_group,
    )


def test_a_node_that_is_wrong_again_and_again_gets_no_more_work() -> None:
    quarantine, budget = Quarantine(after=2), Budget(3)
    assert not quarantine.note(fault(of_group=True), {"n", "m"})
    assert not quarantine.note(fault(of_group=False), {"n", "m"})
    assert quarantine.note(fault(of_group=False), {"n", "m"})
    assert quarantine.nodes == {"n"}
    assert [budget.why_not(fault(of_group=False)) for _ in range(3)] == [None] * 3
    assert "by cause 'divergence'" in str(budget.why_not(fault(of_group=False)))
