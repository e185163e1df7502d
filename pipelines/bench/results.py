"""Publishes the figures of a benchmark: as tables, and as JSON with the machine and versions."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from pipelines.runtime.provenance import git_commit, versions


def add_output_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add --output, by default runs/`name`, and --json."""
    parser.add_argument("--output", type=Path, default=Path("runs") / name)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def origin() -> dict[str, object]:
    """What the figures depend on: the machine, the time, the code, the library versions."""
    return {
        "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": git_commit(),
        "versions": versions(),
    }


def publish(
    results: Mapping[str, object], options: argparse.Namespace, show: Callable[[], None]
) -> None:
    """Write the results to `options.output`, and print them as JSON or with `show`."""
    text = json.dumps(results, indent=1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")
    if options.json:
        print(text)
    else:
        show()
        Console().print(f"written to {options.output}")
