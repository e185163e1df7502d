"""Commands that may hang, run to their end or to a time-out."""

import os
import signal
import subprocess


def run(*command: str, timeout: float = 180) -> tuple[int, str]:
    """Exit code and last line printed; past the time-out the process and its children are ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 1, f"no answer within {timeout:g} s"
    lines = (output if process.returncode == 0 else errors or output).strip().splitlines()
    return process.returncode, lines[-1] if lines else f"exit code {process.returncode}"
