"""Runs the parts of the check, each in a process of its own with its own time limit.

A part is a generator of rows, and its process sends every row at once. So a part that is cut short,
crashes the GPU's context or hangs in a library keeps the rows that it has measured.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Literal

Verdict = Literal["ok", "fail", "cut", "skipped", "unusable"]
PRELOADED = ["torch", "convnextv2.fcmae"]
"""Modules to import once, in the process from which those of the parts are forked."""
DYING_SECONDS = 5.0
"""How long to wait for a killed process: one that waits for a broken driver cannot be ended."""


class Skipped(Exception):
    """A part cannot run here; the message says why and what would help."""


class Unusable(Exception):
    """No part can run on this machine; the message says why and what would help."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of all parts.

    Attributes:
        device: "cuda", or "cpu" for a dry run.
        quick: Whether to use small shapes and few steps.
        sizes: Model sizes to measure.
        rates: The results of the calibration, by name.
        seconds: The time limit of the part that gets this setting.
    """

    device: str = "cuda"
    quick: bool = False
    sizes: tuple[str, ...] = ("base", "atto", "tiny", "large", "huge")
    rates: dict[str, float] = field(default_factory=dict)
    seconds: float = 60.0

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


@dataclass(frozen=True)
class Row:
    """One case of a part: its figures, and a sentence on what is wrong with them, if anything."""

    case: str
    figures: dict[str, float | str]
    problem: str = ""


@dataclass(frozen=True)
class Part:
    """A named generator of rows, and the weight by which it shares the time with other parts."""

    name: str
    weight: float
    rows: Callable[[Setting], Iterator[Row]]


@dataclass(frozen=True)
class Outcome:
    """The result of a part.

    `verdict` is "ok" or "fail" for a part that has finished, "cut" when its time was over,
    "skipped" when something that it needs is missing, and "unusable" when no part can run here.
    """

    verdict: Verdict
    seconds: float
    rows: list[Row]
    reason: str = ""


@dataclass(frozen=True)
class _End:
    verdict: Verdict
    reason: str = ""


def prepare() -> None:
    """Import what parts are forked with, which may take long, before any part's time begins."""
    process = _context().Process(target=time.monotonic, name="prepare")
    process.start()
    process.join()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_part(
    part: Part, setting: Setting, seconds: float, tell: Callable[[Row], None] = lambda row: None
) -> Outcome:
    """Run a part for at most `seconds`; `tell` is called with each row as it arrives."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    begin = time.monotonic()
    setting = replace(setting, seconds=seconds)
    process = context.Process(target=_work, args=(part.rows, setting, sender), name=part.name)
    process.start()
    sender.close()
    rows: list[Row] = []
    end = None
    try:
        while end is None:
            message = _next(receiver, begin + seconds - time.monotonic(), seconds)
            if isinstance(message, Row):
                rows.append(message)
                tell(message)
            else:
                end = message
        process.join(max(0.0, begin + seconds - time.monotonic()))
    finally:
        _kill(process)
    verdict, reason = end.verdict, end.reason
    if not reason and verdict == "fail":
        reason = f"its process ended with code {process.exitcode}"
    if any(row.problem for row in rows) and verdict in ("ok", "cut"):
        verdict = "fail"
    return Outcome(verdict, time.monotonic() - begin, rows, reason)


def _kill(process: BaseProcess) -> None:
    """End a part's process and those it has started, which would slow later parts down."""
    process.kill()
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(DYING_SECONDS)


def _next(receiver: Connection, left: float, seconds: float) -> Row | _End:
    if not receiver.poll(max(0.0, left)):
        return _End("cut", f"its {seconds:.0f} s were over")
    try:
        message: Row | _End = receiver.recv()
    except EOFError:
        return _End("fail")
    return message


def _work(rows: Callable[[Setting], Iterator[Row]], setting: Setting, sender: Connection) -> None:
    """The main function of a part's process, which leads a process group of its own."""
    os.setpgid(0, 0)
    try:
        for row in rows(setting):
            sender.send(row)
    except Unusable as why:
        end = _End("unusable", str(why))
    except Skipped as why:
        end = _End("skipped", str(why))
    except Exception as error:
        traceback.print_exc()
        end = _End("fail", f"{type(error).__name__}: {error}"[:1000])
    else:
        end = _End("ok")
    sender.send(end)
