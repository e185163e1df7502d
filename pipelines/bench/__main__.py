"""`make bench`: the whole stack against bare PyTorch, printed and written as JSON."""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.bench import stack
from pipelines.runtime.provenance import git_commit, versions


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="turns of every pair")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as folder:
        results = {
            "machine": {"cores": len(os.sched_getaffinity(0)), "processor": platform.machine()},
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "commit": git_commit(),
            "versions": versions(),
            "stack": stack.compare(Path(folder) / "stack", options.pairs),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    show(results)
    Console().print(f"written to {options.output}")


def show(results: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table("benchmark", "figure", "value")
    table.add_row(
        results["stack"]["what"],
        "stack / bare PyTorch",
        f"{results['stack']['stack_images_per_second']:,.0f} / "
        f"{results['stack']['bare_images_per_second']:,.0f} images/s = "
        f"{results['stack']['ratio']:.3f}",
    )
    Console().print(table)


if __name__ == "__main__":
    main()
