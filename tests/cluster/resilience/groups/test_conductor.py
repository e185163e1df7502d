"""The conductor with real worker processes, and agents in this process: faults and recovery."""

import itertools
import re
import time
from pathlib import Path

import pytest

from cluster.resilience.conductor import Conductor, GroupFailed, Why
from cluster.resilience.incidents import PHASES, Incident
from cluster.resilience.roster import Kept, NoRoom
from cluster.resilience.watchdog import Limits
from tests.cluster.resilience.groups.local_agents import LocalPlacer, job, worker_processes
from tests.cluster.resilience.groups.steps import Steps, run

pytestmark = pytest.mark.slow

QUICK = Limits(step=4.0, setup=60.0)


class Stage:
    """A conductor, and everything that it says."""

    def __init__(
        self,
        placer: LocalPlacer,
        sizes: list[int],
        max_failures: int = 3,
        kept: Kept | None = None,
    ) -> None:
        self.placer = placer
        self.incidents: list[Incident] = []
        self.said: list[str] = []
        self.conductor = Conductor(
            placer,
            sizes,
            stage="pretrain",
            max_failures=max_failures,
            start_timeout=60.0,
            limits=QUICK,
            note=self.incidents.append,
            say=self.said.append,
            kept=kept,
        )

    def run(self, steps: Steps) -> None:
        self.conductor.run(job(run, steps))


def steps_of(folder: Path, rank: int = 0) -> list[tuple[int, int]]:
    """(step, world size) of all steps that this worker did, in order."""
    lines = (folder / f"steps-{rank}").read_text().splitlines()
    return [(int(step), int(size)) for step, size in map(str.split, lines)]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    yield
    assert worker_processes() == []


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        ("sigkill", "killed", "killed by SIGKILL"),
        ("exit", "killed", "exit code 3"),
        ("unusable", "node", "the GPU has fallen off the bus"),
        ("raise", "error", "KeyError: 'no such photograph'"),
        ("sigstop", "hang", "hangs in phase 'step' after step 12: suspended by a signal"),
        ("hang", "hang", r"hangs in phase 'step' after step 12: no progress for \d+ s"),
    ],
)
def test_a_group_goes_on_from_its_checkpoint(
    fault: str, cause: str, words: str, tmp_path: Path
) -> None:
    stage = Stage(LocalPlacer(2), [2])
    stage.run(Steps(tmp_path, fault=fault))
    assert (tmp_path / "fired-0").exists()
    assert [step for step, _ in steps_of(tmp_path)] == [*range(1, 13), *range(11, 21)]
    first, whole = stage.incidents
    assert (first.id, first.recovered) == (whole.id, False)
    assert whole.recovered
    assert (whole.cause, whole.rank, whole.step, whole.lost_steps) == (cause, 1, 12, 2)
    assert re.fullmatch(words, whole.error)
    assert whole.workers == (2, 2)
    assert set(whole.seconds) <= set(PHASES)
    assert whole.downtime == pytest.approx(sum(whole.seconds.values()))
    assert stage.said == [f"worker 1: {whole.error}; going on from the last checkpoint"]
    if fault == "hang":
        assert "time.sleep" in whole.stacks[1] or "in fail" in whole.stacks[1]
        assert "all_reduce" in whole.stacks[0]
    if fault == "sigstop":
        assert list(whole.stacks) == [0], "one that is suspended cannot say where it is"


def test_a_machine_that_cannot_do_the_job_ends_it_before_the_first_step(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2), [2])
    with pytest.raises(GroupFailed, match="the GPU has fallen off the bus"):
        stage.run(Steps(tmp_path, fault="unusable", at=0))
    assert len(stage.incidents) == 1


@pytest.mark.parametrize(("fault", "cause"), [("sigkill", "killed"), ("hang", "hang")])
def test_a_fault_after_the_last_step_is_recovered_from(
    fault: str, cause: str, tmp_path: Path
) -> None:
    """The other worker has ended by then; the new group finds no step left to do."""
    stage = Stage(LocalPlacer(2), [2])
    stage.run(Steps(tmp_path, fault=fault, at=20))
    assert (tmp_path / "fired-0").exists()
    assert [step for step, _ in steps_of(tmp_path)] == list(range(1, 21))
    whole = stage.incidents[-1]
    assert (whole.cause, whole.step, whole.lost_steps, whole.recovered) == (cause, 20, 0, True)


def test_a_spare_takes_over_without_importing_anything(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2, keep_spare=True), [2])

    def when_spares_are_ready() -> None:
        # The fault happens only after both spares are ready.
        ready = [m.status is not None and m.status.spare for m in stage.conductor.roster.members]
        if len(ready) == 2 and all(ready):
            (tmp_path / "go").touch()

    stage.conductor.tick = when_spares_are_ready
    stage.run(Steps(tmp_path, fault="sigkill", wait_for="go"))
    assert (tmp_path / "fired-0").exists()
    *_, whole = stage.incidents
    without = {name: s for name, s in whole.seconds.items() if name != "imports"}
    assert whole.seconds["imports"] < 1.0 < 60.0, "no process was started for it"
    assert set(without) >= {"detection", "teardown", "placement", "process group", "first step"}


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2), [2], max_failures=10)
    with pytest.raises(GroupFailed) as info:
        stage.run(Steps(tmp_path, fault="raise", often=9))
    assert str(info.value) == (
        "the worker group failed for good:\n"
        "  worker 1: KeyError: 'no such photograph'\n"
        "  (the same error came twice at the same step)"
    )
    assert len(list(tmp_path.glob("fired-*"))) == 2


def test_a_budget_ends_without_a_checkpoint_in_between(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2), [2], max_failures=1)
    with pytest.raises(GroupFailed, match="failed 2 times by cause 'killed' without a new"):
        stage.run(Steps(tmp_path, fault="sigkill", often=9))
    assert len(list(tmp_path.glob("fired-*"))) == 2


def test_a_lost_node_is_done_without_and_a_new_one_is_taken_in(tmp_path: Path) -> None:
    placer = LocalPlacer(3)
    stage = Stage(placer, [1, 2, 3])

    def lose_and_give_back() -> None:
        done = steps_of(tmp_path) if (tmp_path / "steps-0").exists() else []
        if len(done) >= 10 and not placer.agents[1].is_cut:
            placer.agents[1].cut()
        if done and done[-1][1] == 2 and done[-1][0] > 14:
            placer.nodes = 4
        if placer.nodes == 4 and done[-1][1] == 3:
            (tmp_path / "finish").touch()

    stage.conductor.tick = lose_and_give_back
    stage.run(Steps(tmp_path, total=4000, pause=0.05))
    sizes = [size for size, _ in itertools.groupby(size for _, size in steps_of(tmp_path))]
    assert sizes == [3, 2, 3]
    whole = next(incident for incident in stage.incidents if incident.recovered)
    assert (whole.cause, whole.node, whole.workers) == ("node", "node-1", (3, 2))
    steps = [step for step, _ in steps_of(tmp_path)]
    again = [step for before, step in itertools.pairwise(steps) if step != before + 1]
    assert len(again) <= 1, "nothing is done twice for growing, only after the loss"
    assert f"{Why.GROW.value}: saving a checkpoint of this step to go on from" in stage.said


def test_an_agent_that_is_lost_before_it_has_work_is_replaced(tmp_path: Path) -> None:
    placer = LocalPlacer(1)
    stage = Stage(placer, [1, 2])

    def lose_the_one_that_waits() -> None:
        done = steps_of(tmp_path) if (tmp_path / "steps-0").exists() else []
        if done and not placer.agents[1].is_cut:
            placer.agents[1].is_cut = True
        if len(placer.agents) == 3:
            placer.nodes = 3
        if done and done[-1][1] == 2:
            (tmp_path / "finish").touch()

    stage.conductor.tick = lose_the_one_that_waits
    stage.run(Steps(tmp_path, total=4000, pause=0.05))
    sizes = [size for size, _ in itertools.groupby(size for _, size in steps_of(tmp_path))]
    assert sizes == [1, 2]
    assert stage.incidents == [], "nobody had to begin again"


def test_a_node_that_is_to_go_is_left_in_time(tmp_path: Path) -> None:
    placer = LocalPlacer(2)
    stage = Stage(placer, [1, 2])

    def drain() -> None:
        if (tmp_path / "steps-0").exists() and len(steps_of(tmp_path)) > 6:
            placer.gone = {"node-1"}

    stage.conductor.tick = drain
    stage.run(Steps(tmp_path, total=60, every=1000, pause=0.05))
    assert [step for step, _ in steps_of(tmp_path)] == list(range(1, 61))
    assert {size for _, size in steps_of(tmp_path)} == {2, 1}
    assert stage.incidents == []


def test_a_node_that_went_in_order_but_without_notice_counts_as_preempted(tmp_path: Path) -> None:
    placer = LocalPlacer(2)
    stage = Stage(placer, [1, 2], max_failures=0)

    def terminate() -> None:
        if (tmp_path / "steps-0").exists() and len(steps_of(tmp_path)) > 6:
            placer.told = {"node-1"}
            placer.agents[1].cut()
            stage.conductor.tick = lambda: None

    stage.conductor.tick = terminate
    stage.run(Steps(tmp_path, total=40, pause=0.05))
    whole = stage.incidents[-1]
    assert (whole.cause, whole.node, whole.recovered) == ("preemption", "node-1", True)


def test_an_interrupted_group_saves_the_step_it_is_at(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2), [2])

    def interrupt() -> None:
        if (tmp_path / "steps-0").exists() and len(steps_of(tmp_path)) > 6:
            stage.conductor.tick = lambda: None
            raise KeyboardInterrupt

    stage.conductor.tick = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.run(Steps(tmp_path, total=1000, every=1000, pause=0.05))
    assert (tmp_path / "checkpoint").read_text() == str(steps_of(tmp_path)[-1][0])
    again = Stage(LocalPlacer(2), [2])
    again.run(Steps(tmp_path, total=30, every=1000))
    assert [step for step, _ in steps_of(tmp_path)] == list(range(1, 31))


def test_a_second_interrupt_is_immediate(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(2), [2])

    def interrupt() -> None:
        if (tmp_path / "fired-0").exists():
            raise KeyboardInterrupt

    stage.conductor.tick = interrupt
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stage.run(Steps(tmp_path, fault="hang", at=5, every=1000))
    assert stage.said == ["saving a checkpoint of this step; once more to stop at once"]
    assert not (tmp_path / "checkpoint").exists()
    assert time.monotonic() > began


def test_what_is_waited_for_is_said(tmp_path: Path) -> None:
    stage = Stage(LocalPlacer(1), [2])
    stage.conductor.roster.start_timeout = 7.0
    with pytest.raises(NoRoom, match="waiting for 1 more of 2 workers for 7 s; the cluster has 1"):
        stage.run(Steps(tmp_path))
    [said] = stage.said
    assert said == "waiting for 1 more of 2 workers, 5 s; the cluster has 1 nodes"
