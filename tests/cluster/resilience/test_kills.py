"""A save that is killed at any call that changes the file system leaves a last good checkpoint.

The tests repeat one save, killed before its first call, before its second and so on to the last;
and inside every write, when half of it is written. (`strace` of a save that follows a killed one
shows exactly the calls in the log of `Kill`.)
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.checkpoint.async_saver import Saver
from cluster.checkpoint.retention import KeepPolicy
from cluster.checkpoint.store import CheckpointError, latest_good, steps
from tests.cluster.checkpoint.fragments import (
    States,
    holds,
    is_good,
    last_good,
    make_states,
    replicated,
)
from tests.cluster.resilience.kills import Kill, calls_in

STEP, NEXT = 300, 500
PATIENCE = timedelta(seconds=60)  # For workers that would otherwise wait for each other forever.
TOLD = 3  # Exit code of a worker that noticed the other one's death.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload([__name__])


def states_of(step: int) -> States:
    return make_states(step, ["stem.weight", "frozen"])


def save(root: Path, step: int) -> None:
    saver = Saver(root, KeepPolicy(last=2))
    saver.save(step, replicated(states_of(step)), {"seed": step})
    saver.wait()


def save_and_die(kill: Kill) -> None:
    kill.arm()
    save(kill.root, STEP)


def run(*processes: BaseProcess) -> list[int | None]:
    """Start processes, wait for them, and return their exit codes."""
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def nothing(root: Path) -> None:
    """The first save of a run, whose folder does not exist yet."""


def two_saves(root: Path) -> None:
    """The usual save, after two others, which removes the oldest."""
    save(root, 100)
    save(root, 200)


def a_left_over(root: Path) -> None:
    """The save after one that was killed, whose remains it has to remove."""
    two_saves(root)
    shutil.copytree(root / "step-00000200", root / ".step-00000300.0f.partial")


def a_torn_one(root: Path) -> None:
    """The save after training went back because the newest checkpoint was incomplete."""
    two_saves(root)
    shutil.copytree(root / "step-00000200", root / "step-00000400")
    os.truncate(root / "step-00000400" / "rank-00000.safetensors", 99)


BEGINNINGS: list[Callable[[Path], None]] = [nothing, two_saves, a_left_over, a_torn_one]


def walk(folder: Path, begin: Callable[[Path], None]) -> Iterator[tuple[Kill, int | None]]:
    """Kill a save at one call after another; yields exit codes, until a save survives."""
    begin(folder / "beginning")
    call = 0
    code: int | None = -signal.SIGKILL
    while code == -signal.SIGKILL:
        call += 1
        for inside in (False, True):
            root = folder / f"{call}-{inside}"
            if (folder / "beginning").exists():
                shutil.copytree(folder / "beginning", root)
            kill = Kill(root, folder / f"{call}-{inside}.log", call, inside)
            (code,) = run(CLEAN.Process(target=save_and_die, args=(kill,)))
            yield kill, code
            if code != -signal.SIGKILL or calls_in(kill.log)[-1][0] != "write":
                break


def check_what_is_left(root: Path, done: list[tuple[str, str]], had: int | None) -> None:
    """Check, after the calls `done`, that the last good checkpoint is intact and saving works."""
    published = ("rename", str(root / f"step-{STEP:08d}")) in done
    aside = any("rejected" in path for _, path in done)
    torn = {"step-00000400"} if (root / "step-00000400").exists() else set()
    search = latest_good(root)
    assert {path.name for path, _ in search.rejected} == torn
    assert not (torn and aside)
    assert {path.name for path in steps(root) if not is_good(path)} == torn
    step = STEP if published else had
    if step is None:
        assert search.found is None
    else:
        assert search.found is not None
        assert (search.found.step, search.found.notes) == (step, {"seed": step})
        assert holds(search.found.path, states_of(step))
    save(root, NEXT)
    assert holds(last_good(root).path, states_of(NEXT))
    assert not list(root.glob(".*")), "the next save sweeps what a kill left"


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_kill_at_any_call_leaves_a_good_one(
    begin: Callable[[Path], None], tmp_path: Path
) -> None:
    begin(tmp_path / "as it was")
    found = latest_good(tmp_path / "as it was").found
    had = None if found is None else found.step
    *killed, (last, code) = walk(tmp_path, begin)
    assert code == 0
    assert {code for _, code in killed} == {-signal.SIGKILL}, "each fired"
    check_what_is_left(last.root, calls_in(last.log), had)
    for kill, _ in killed:
        # The last call in the log is the one before or inside which it was killed.
        check_what_is_left(kill.root, calls_in(kill.log)[:-1], had)

    kinds = [kind for kind, _ in calls_in(last.log)]
    assert [calls_in(kill.log)[-1][0] for kill, _ in killed if not kill.inside] == kinds
    assert sum(kill.inside for kill, _ in killed) == kinds.count("write") > 5
    assert len(kinds) > 15
    assert set(kinds) >= {"mkdir", "open", "write", "fsync", "rename"}
    assert begin is nothing or set(kinds) >= {"unlink", "rmdir"}


def enter(rank: int, meet: Path, root: Path, kill: Kill | None) -> None:
    """One of two workers that save together; exits with TOLD when it notices the other's death."""
    dist.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=rank, world_size=2, timeout=PATIENCE
    )
    saver = Saver(root, KeepPolicy(last=2))
    saver.save(200, replicated(states_of(200)), {"seed": 200})
    saver.wait()
    dist.barrier()
    if kill is not None:
        kill.arm()
    saver.save(STEP, replicated(states_of(STEP)), {"seed": STEP})
    try:
        saver.wait()
    except CheckpointError as error:
        os._exit(TOLD if "a worker was lost" in str(error) else 1)
    os._exit(0)


def kill_one_of_two(folder: Path, rank: int, call: int, *, inside: bool = False) -> Kill | None:
    """Kill worker `rank` at the call; the other must notice it. None if both survived."""
    name = f"{rank}-{call}-{inside}"
    root = folder / name
    kill = Kill(root, folder / f"{name}.log", call, inside)
    workers = [
        CLEAN.Process(
            target=enter, args=(each, folder / f"{name}.meet", root, kill if each == rank else None)
        )
        for each in (0, 1)
    ]
    codes = run(*workers)
    if codes == [0, 0]:
        return None
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == TOLD
    return kill


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_killed_is_heard_of_and_nothing_torn_is_published(
    rank: int, tmp_path: Path
) -> None:
    walked: list[str] = []
    call, inside = 1, False
    while kill := kill_one_of_two(tmp_path, rank, call, inside=inside):
        *done, (kind, _) = calls_in(kill.log)
        walked.append(f"in {kind}" if inside else kind)
        # The other worker publishes nothing that the killed one has not finished.
        check_what_is_left(kill.root, done, had=200)
        inside = kind == "write" and not inside
        call += not inside
    assert walked.count("in write") == walked.count("write")
    if rank == 1:
        assert walked == ["open", *["write", "in write"] * 6, "fsync"]
    else:
        assert walked[:2] == ["mkdir", "open"]
        assert walked[-2:] == ["rename", "fsync"]
