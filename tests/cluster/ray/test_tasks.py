"""Independent tasks on a real Ray cluster of this machine: results, deaths, errors, early ends."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
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


def appear(path: Path) -> bool:
    """Wait until the file is there; False after a minute."""
    deadline = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def meet(path: Path) -> bool:
    """Whether this process and the other, "a" and "b", run at the same time."""
    path.touch()
    return appear(path.with_name("b" if path.name == "a" else "a"))


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


def stay(path: Path) -> None:
    """Say which process this is, and run far longer than any test."""
    path.with_name("new").write_text(str(os.getpid()))
    path.with_name("new").rename(path)
    time.sleep(3600)


def test_every_item_gives_its_result_elsewhere(cluster: Cluster) -> None:
    results = list(cluster.map(square, range(25)))
    assert sorted(value for value, _ in results) == [n * n for n in range(25)]
    assert os.getpid() not in {pid for _, pid in results}
    assert list(cluster.map(square, [])) == []


def test_no_more_run_at_a_time_than_there_are_workers(cluster: Cluster) -> None:
    results: list[tuple[int, int]] = []
    running = []

    def items() -> Iterator[int]:
        for number in range(6):
            running.append(number + 1 - len(results))
            yield number

    for result in cluster.map(square, items()):
        results.append(result)
    assert len(results) == 6
    assert max(running) == AT_ONCE


def test_items_run_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    assert list(cluster.map(meet, [tmp_path / "a", tmp_path / "b"])) == [True, True]


def test_results_come_as_they_finish(cluster: Cluster, tmp_path: Path) -> None:
    late, early = tmp_path / "late", tmp_path / "early"
    early.touch()
    results = cluster.map(named_when_it_appears, [late, early])
    assert next(results) == "early"
    late.touch()
    assert list(results) == ["late"]


def named_when_it_appears(path: Path) -> str:
    return path.name if appear(path) else "never"


def test_the_caller_is_called_while_it_waits(cluster: Cluster, tmp_path: Path) -> None:
    threads: list[threading.Thread] = []

    def called() -> None:
        threads.append(threading.current_thread())
        if len(threads) == 3:
            (tmp_path / "enough").touch()

    assert list(cluster.map(appear, [tmp_path / "enough"], while_waiting=called)) == [True]
    assert len(threads) >= 3
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
    path = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        list(cluster.map(stay, [path], while_waiting=stop_when(path)))
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(path.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stop_when(path: Path) -> Callable[[], None]:
    """Ctrl-C, once the task runs."""

    def stop() -> None:
        if path.exists():
            raise KeyboardInterrupt

    return stop
