"""A driver of the benchmark: `python -m pipelines.bench.faults.driver SYSTEM FOLDER`."""

import importlib
import sys

from pipelines.bench.faults.training import Assignment


def main() -> None:
    """Train, in the module that the system is named after, until the process is killed."""
    system, folder = sys.argv[1:]
    importlib.import_module(f"pipelines.bench.faults.{system}").drive(Assignment.read(folder))


if __name__ == "__main__":
    main()
