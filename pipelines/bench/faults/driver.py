"""A driver of the benchmark: `python -m pipelines.bench.faults.driver SYSTEM FOLDER`."""

import sys

from pipelines.bench.faults.training import Assignment


def main() -> None:
    """Train with this project ("ours") or with Ray Train, until the process is killed."""
    system, folder = sys.argv[1:]
    assignment = Assignment.read(folder)
    if system == "ours":
        from pipelines.bench.faults import ours

        ours.drive(assignment)
    else:
        from pipelines.bench.faults import ray_train

        ray_train.drive(assignment)


if __name__ == "__main__":
    main()
