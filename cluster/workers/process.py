"""The agent's side of a child: its process, its page of memory, and its messages."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from cluster.workers.beacon import Page
from cluster.workers.memory_kills import memory_kills
from cluster.workers.messages import Ended, Order

STACK_SECONDS = 1.0
TAIL_BYTES = 4000


class Child:
    """A process of `cluster.workers.child`.

    Args:
        preparation: A pickled pair of functions: the first is called at once; the second is the
            job's, unpickled early for its imports.
        changed: Notified when it is ready, reaches a milestone or ends.
    """

    def __init__(self, preparation: bytes, changed: threading.Condition):
        self.page = Page()
        self.ready = self.has_ended = False
        self.milestones: dict[str, float] = {}
        # Files in memory disappear with the processes that hold them open, even after a crash.
        self._output, self._stacks = os.memfd_create("output"), os.memfd_create("stacks")
        self._changed = changed
        self._told: Ended | None = None
        self._ended_at = 0.0
        self._kills_before = self._kills_after = memory_kills()
        reading, writing = os.pipe()
        handed = {
            "--page": self.page.descriptor,
            "--stacks": self._stacks,
            "--messages": writing,
        }
        arguments = {**handed, "--parent": os.getpid()}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cluster.workers.child"),
                *(str(word) for pair in arguments.items() for word in pair),
            ],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(handed.values()),
            # Ctrl-C in a terminal must reach the driver alone, which asks the workers to stop.
            start_new_session=True,
        )
        os.close(writing)
        self._send(preparation)
        self._listener = threading.Thread(
            target=self._listen, args=(os.fdopen(reading),), daemon=True
        )
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def obey(self, order: Order) -> None:
        """Send the order; a child that is still importing reads it when it is ready."""
        self._send(order)

    def ended(self) -> Ended | None:
        """How it ended: by its own report, or else by its exit code or signal."""
        if not self.has_ended:
            return None
        ago = time.monotonic() - self._ended_at
        if self._told is not None:
            return replace(self._told, ago=ago)
        code = self._process.wait()
        error = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        printed = os.fstat(self._output).st_size
        trace = _end_of(self._output, max(0, printed - TAIL_BYTES))
        memory = code == -signal.SIGKILL and self._kills_after > self._kills_before
        return Ended(how="killed", error=error, trace=trace, memory=memory, ago=ago)

    def suspended(self) -> bool:
        """Whether a signal has stopped it."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in "Tt"

    def stacks(self) -> str:
        """The stacks of its threads; a suspended process cannot tell them."""
        if not self.alive or self.suspended():
            return ""
        before = os.fstat(self._stacks).st_size
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + STACK_SECONDS
        text = ""
        while time.monotonic() < deadline:
            time.sleep(STACK_SECONDS / 10)
            longer = _end_of(self._stacks, before)
            if longer and longer == text:
                break
            text = longer
        return text

    def close(self) -> None:
        """Kill it and wait until it has exited."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self.page.close()
        os.close(self._output)
        os.close(self._stacks)

    def _send(self, item: bytes | Order) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `ended` reports that it is gone.
            pickle.dump(item, self._process.stdin)
            self._process.stdin.flush()

    def _listen(self, messages: IO[str]) -> None:
        with messages:
            for line in messages:
                if line.endswith("\n"):  # A child that is killed may leave a part of a message.
                    self._hear(json.loads(line))
        if not self.has_ended:
            self._process.wait()
            self._end(None)

    def _hear(self, message: dict[str, object]) -> None:
        if "ended" in message:
            self._end(Ended(**message["ended"]))  # type: ignore[arg-type]
            return
        with self._changed:
            if "milestone" in message:
                self.milestones[str(message["milestone"])] = float(str(message["seconds"]))
            else:
                self.ready = True
            self._changed.notify_all()

    def _end(self, told: Ended | None) -> None:
        with self._changed:
            self._kills_after = memory_kills()
            self._told, self._ended_at, self.has_ended = told, time.monotonic(), True
            self._changed.notify_all()


def _end_of(descriptor: int, start: int) -> str:
    """The content of an open file from `start` on, without moving the position of its writer."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, max(0, size - start), start).decode(errors="replace").strip()
