"""Independent tasks on a real Ray cluster of this machine: results, deaths, errors, early ends."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.launch import Cluster, ClusterError, Placement

AT_ONCE = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with Cluster(Placement(num_workers=AT_ONCE)) as cluster:
            yield cluster


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def overlap(folder: Path) -> int:
    """How many run while this one does, itself included."""
    mine = folder / f"{os.getpid()}-{time.time_ns()}"
    mine.touch()
    time.sleep(0.3)
    running = len(list(folder.iterdir()))
    mine.unlink()
    return running


def wait_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def die_until(path: Path, times: int) -> int:
    """Die by SIGKILL as often as told; then return how often it was."""
    with path.open("a") as file:
        file.write("x")
    entered = path.stat().st_size
    if entered <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return entered


def die_once(path: Path) -> int:
    return die_until(path, 1)


def die_always(path: Path) -> int:
    return die_until(path, 100) if path.name == "doomed" else 0


class NoSuchPhotograph(ValueError):
    """An error with something on it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def fail_at_two(number: int) -> int:
    if number == 2:
        raise NoSuchPhotograph(number)
    return number


def tick(path: Path) -> None:
    """Let a file grow for as long as this process lives, far longer than any test."""
    for _ in range(3000):
        with path.open("a") as file:
            file.write("x")
        time.sleep(0.1)


def grows(path: Path) -> bool:
    size = path.stat().st_size
    time.sleep(0.5)
    return path.stat().st_size > size


def test_every_item_gives_its_result_elsewhere(cluster: Cluster) -> None:
    results = list(cluster.map(square, range(25)))
    assert sorted(value for value, _ in results) == [n * n for n in range(25)]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(cluster.map(square, [])) == []


def test_no_more_run_at_a_time_than_there_are_workers(cluster: Cluster, tmp_path: Path) -> None:
    assert max(cluster.map(overlap, [tmp_path] * 6)) == AT_ONCE


def test_results_come_as_they_finish(cluster: Cluster) -> None:
    assert list(cluster.map(wait_for, [3.0, 0.0, 0.1])) == [0.0, 0.1, 3.0]


def test_the_caller_is_called_while_it_waits(cluster: Cluster) -> None:
    threads: list[threading.Thread] = []
    waits = cluster.map(
        wait_for, [1.5], while_waiting=lambda: threads.append(threading.current_thread())
    )
    assert list(waits) == [1.5]
    assert len(threads) > 2
    assert set(threads) == {threading.current_thread()}


def test_an_item_whose_process_was_killed_is_tried_once_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in "abc"]
    assert list(cluster.map(die_once, paths)) == [2, 2, 2]


def test_an_item_that_kills_its_process_again_is_named(cluster: Cluster, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("good", "doomed", "fine")]
    with pytest.raises(ClusterError, match=r"a process died twice on the same work.*doomed"):
        list(cluster.map(die_always, paths))
    assert paths[1].read_text() == "xx"


def test_an_exception_reaches_the_caller_as_it_was(cluster: Cluster) -> None:
    with pytest.raises(NoSuchPhotograph) as info:
        list(cluster.map(fail_at_two, range(5)))
    assert type(info.value) is NoSuchPhotograph
    assert info.value.number == 2


def test_leaving_early_ends_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "ticks"
    with pytest.raises(KeyboardInterrupt):
        list(cluster.map(tick, [path], while_waiting=stop_when(path)))
    deadline = time.monotonic() + 60
    while grows(path):
        assert time.monotonic() < deadline


def stop_when(path: Path) -> Callable[[], None]:
    """Ctrl-C, once the task runs."""

    def stop() -> None:
        if path.exists():
            raise KeyboardInterrupt

    return stop
