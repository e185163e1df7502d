"""The driver of a fault test: `python -m tests.faults.driver FOLDER`, with `plan.json` in it.

It writes its messages to `said`, incidents as a run does, and the error that ended it to `error`.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.launch import Cluster, ClusterError, Placement
from cluster.resilience import incidents
from tests.cluster.resilience.groups import steps


@dataclass(frozen=True)
class Plan:
    """What a driver runs: `Steps` with these fields, on a group of one of these sizes."""

    address: str
    steps: dict[str, object]
    num_workers: int = 2
    min_workers: int | None = None
    warm_spare: bool = False
    start_timeout_seconds: float = 120.0

    def write(self, folder: Path) -> None:
        (folder / "plan.json").write_text(json.dumps(asdict(self)))


def main() -> None:
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "plan.json").read_text())
    job = steps.Steps(folder, **settings.pop("steps"))

    def say(sentence: str) -> None:
        with (folder / "said").open("a") as file:
            file.write(sentence + "\n")

    try:
        with Cluster(Placement(**settings)) as cluster:
            cluster.run(
                steps.run,
                job,
                name="toy",
                prepare=steps.prepare,
                note=lambda incident: incidents.append(folder, incident),
                say=say,
            )
    except ClusterError as error:
        (folder / "error").write_text(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
