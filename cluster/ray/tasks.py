"""Calls a function on many items in Ray tasks, for work that needs no group of workers."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cluster.placement import ClusterError
from cluster.ray.start import reason

POLL_SECONDS = 0.25

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    at_a_time: int,
    while_waiting: Callable[[], None],
) -> Iterator[Result]:
    """Call `function` on every item, one CPU each, and yield results as they come.

    `items` is consumed lazily, `at_a_time` ahead. An item whose process dies is tried once more.
    `while_waiting` is called a few times a second.

    Raises:
        ClusterError: When a process died twice on the same item (out of memory?).
        BaseException: Whatever `function` raised, unchanged.
    """
    import ray

    def call(item: Item) -> Result:  # Ray accepts plain functions only, no other callables.
        return function(item)

    task = ray.remote(num_cpus=1, max_retries=0)(call)
    left = iter(items)
    running: dict[Any, tuple[Item, bool]] = {}
    try:
        while True:
            for item in itertools.islice(left, at_a_time - len(running)):
                running[task.remote(item)] = (item, False)
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            while_waiting()
            for ref in done:
                item, again = running.pop(ref)
                try:
                    yield _result_of(ref)
                except _ProcessDied as death:
                    if again:
                        raise ClusterError(
                            "a process died twice on the same work (out of memory?): "
                            f"{repr(item)[:200]}"
                        ) from death
                    running[task.remote(item)] = (item, True)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


class _ProcessDied(RuntimeError):
    """The process of a task died, or its result was lost with its node."""


def _result_of(ref: Any) -> Any:
    """The result of a finished task.

    Raises:
        _ProcessDied: When the task may be tried again.
        ClusterError: When Ray failed in another way.
        BaseException: Whatever the task raised, unchanged.
    """
    import ray
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayError,
        RayTaskError,
        WorkerCrashedError,
    )

    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise (error.cause or error) from None
    except (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError) as error:
        raise _ProcessDied(reason(error)) from error
    except RayError as error:
        raise ClusterError(f"Ray failed at work: {reason(error)}") from error
