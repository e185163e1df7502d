"""A Python process for code that may crash or hang, and costs too much to start for every check."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

# Answers go to a descriptor of their own: what libraries print, also from C, must not mix with
# them.
LOOP = """
import contextlib, io, json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    printed, error = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(json.loads(line), {})
    except BaseException as raised:
        error = "".join(traceback.format_exception_only(raised))
    print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)
"""


class Interpreter:
    """Runs code in one process, where every library is imported once; a process that died or hung
    is replaced by a new one. Use it with `with`.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Interpreter":
        self._errors = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()  # Its loop ends, and what it has started is ended.
            self._wait(10.0)
        self._stack.close()

    def run(self, code: str, timeout: float = 180) -> tuple[int, str]:
        """Exit code (0 if nothing was raised) and the last line printed, or that of the error."""
        if self._process is None:
            self._process = self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(code) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        answer = process.stdout.readline() if ready else ""
        if answer:
            printed, error = json.loads(answer)
            return int(bool(error)), _last_line(error or printed)
        if not ready:
            self._wait(0.0)
            return 1, f"no answer within {timeout:g} s"
        code_of_death = self._wait(10.0)
        self._errors.seek(0)
        return code_of_death or 1, _last_line(self._errors.read()) or f"exit code {code_of_death}"

    def _started(self) -> subprocess.Popen[str]:
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(
            [sys.executable, "-c", LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def _wait(self, timeout: float) -> int:
        """Give the process time to end, then end it with its children; returns its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return process.returncode


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "")
