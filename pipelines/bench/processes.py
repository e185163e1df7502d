"""Runs a measurement in a process of its own, with its own start-up and peak memory."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping


def figures_of(
    name: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The last line that a Python process with these arguments prints, parsed as JSON.

    `environment` is added to the environment of the process.

    Raises:
        RuntimeError: When the process fails; has `name` and the last line of its output.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
