"""A Ray that does not start: once more, and then one sentence."""

import socket
from collections.abc import Callable

import psutil
import pytest

from cluster.launch import Cluster, ClusterError, Placement
from cluster.ray import access
from cluster.ray.start import start_with_retry

# What Ray 2.60 raises when a raylet does not report in time, and when the head does not answer.
TIMED_OUT = Exception("The current node timed out during startup. This could happen because some")
NO_ANSWER = RuntimeError("Failed to start GCS.\n  Last 2 lines of error files:\n\n...")


class Attempts:
    """A start that fails with these errors, one after another, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")
        if self.errors:
            raise self.errors.pop(0)

    def give_up(self) -> None:
        self.calls.append("give up")


@pytest.mark.parametrize("error", [TIMED_OUT, NO_ANSWER, OSError("fork: out of memory")])
def test_a_start_that_fails_once_is_made_again(error: Exception) -> None:
    attempts = Attempts(error)
    start_with_retry(attempts.start, attempts.give_up)
    assert attempts.calls == ["start", "give up", "start"]


def test_a_start_that_fails_twice_is_told_in_one_sentence() -> None:
    attempts = Attempts(TIMED_OUT, NO_ANSWER)
    with pytest.raises(ClusterError) as info:
        start_with_retry(attempts.start, attempts.give_up)
    assert attempts.calls == ["start", "give up"] * 2
    assert str(info.value) == (
        "a Ray cluster did not start here in 2 attempts; is this machine short of memory, or "
        "overloaded? Ray says: Failed to start GCS. Last 2 lines of error files: ..."
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("object_store_memory is too small"), "cannot start .* here: object_store"),
        (ClusterError("port 8265 is in use"), "port 8265 is in use"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(error: Exception, words: str) -> None:
    attempts = Attempts(error)
    with pytest.raises(ClusterError, match=words):
        start_with_retry(attempts.start, attempts.give_up)
    assert attempts.calls.count("start") == 1


def test_ctrl_c_is_not_taken_for_a_failure() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_with_retry(interrupted, lambda: None)


def servers() -> set[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return {process for process in children if process.name() == "gcs_server"}


@pytest.mark.slow
def test_a_real_start_that_times_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes are up when its look at the node fails, as on a machine under load."""
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    left_behind: list[psutil.Process] = []
    look: Callable[..., object] = services.get_node

    def fail_once(*arguments: object) -> object:
        if not left_behind:
            left_behind.extend(servers())
            raise TIMED_OUT
        return look(*arguments)

    monkeypatch.setattr(services, "get_node", fail_once)
    with Cluster(Placement(num_workers=1, start_timeout_seconds=120)) as cluster:
        assert len(left_behind) == 1
        assert not left_behind[0].is_running()
        assert list(cluster.map(abs, [-3])) == [3]


@pytest.mark.parametrize("error", [TIMED_OUT, ConnectionError("version mismatch")])
def test_a_cluster_that_cannot_be_joined_is_told_in_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(access, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        words = f"cannot connect to the Ray cluster at {address}: {error}"
        with pytest.raises(ClusterError, match=words):
            Cluster(Placement(num_workers=1, address=address)).__enter__()
