"""Runs contenders that read epochs, each in a process of its own, one at a time.

A contender that waits for its turn does nothing, so the current one has the whole machine.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from pipelines.bench.turns import take_turns

Epoch = Callable[[int], int]
"""Runs the epoch of this number to its end; returns its number of images."""


def rates_of(
    contenders: Mapping[str, Callable[[], Epoch]], turns: int, seconds: float
) -> dict[str, list[float]]:
    """Images/s of every contender in each of `turns` turns, which take at least `seconds`.

    A turn consists of whole epochs. One epoch before the first turn is not counted, because it
    compiles, starts workers and fills the page cache.

    Raises:
        RuntimeError: When the process of a contender ended early; names the contender.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[SpawnProcess, Connection]] = {}
    try:
        for name, start in contenders.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start, seconds), name=name)
            process.start()
            theirs.close()
            running[name] = process, ours
            _ask(process, ours)
        return take_turns({name: partial(_ask, *each) for name, each in running.items()}, turns)
    finally:
        for _, connection in running.values():
            connection.close()
        for process, _ in running.values():
            process.join()


def _ask(process: SpawnProcess, connection: Connection) -> float:
    try:
        connection.send("your turn")
        rate: float = connection.recv()
    except (EOFError, OSError) as error:
        process.join()
        raise RuntimeError(
            f"{process.name} ended early (exit code {process.exitcode}); its message is above"
        ) from error
    return rate


def _serve(connection: Connection, start: Callable[[], Epoch], seconds: float) -> None:
    """Run a turn for every request, until the other end of the connection is closed."""
    run = start()
    number = 0
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        images, begin = 0, time.perf_counter()
        # The first turn, which is not counted, is a single epoch.
        while images == 0 or (number > 1 and time.perf_counter() - begin < seconds):
            images += run(number)
            number += 1
        connection.send(images / (time.perf_counter() - begin))
