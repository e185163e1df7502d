"""`make bench-faults`: how long training stands still after a fault, and what it repeats.

Every fault is injected into a real Ray cluster of several nodes on this machine. Two of them train,
and where a fault takes a node, there is a third one.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from cluster.laboratory.nodes import Laboratory, laboratory
from cluster.laboratory.processes import wait_until
from pipelines.bench.faults.faults import FAULTS, Fault, Victim
from pipelines.bench.faults.recovery import Recovery, Row, table
from pipelines.bench.faults.systems import CONTENDERS, Contender, System
from pipelines.bench.faults.training import CHECKPOINT_EVERY, WORKERS, Assignment, write_images
from pipelines.bench.results import add_output_options, origin, publish

# A node that fails three times gets no more work, and here all faults are on two nodes.
MOST_TURNS = 4
POLL_SECONDS, START_SECONDS = 0.05, 300.0
LONGEST = 2000
WORKER_PROCESSES = ("PlacedAgent", "cluster.workers.child", "RayTrainWorker")


def main() -> None:
    options = parser().parse_args()
    # So that the cluster is ended, too, when this process is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = origin()
    rows = measure(options)
    results = {**started, "rows": [asdict(row) for row in rows]}
    publish(results, options, lambda: print(table(rows)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.faults", description=__doc__)
    parser.add_argument("--turns", type=int, choices=range(1, MOST_TURNS + 1), default=2)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--systems", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--cutoff", type=float, default=180.0, help="seconds after which a turn is given up"
    )
    parser.add_argument(
        "--enough", type=float, default=60.0, help="seconds of turns after which none begins"
    )
    add_output_options(parser, "bench-faults.json")
    return parser


def measure(options: argparse.Namespace) -> list[Row]:
    """A row for every fault and system."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="convnextv2-bench-") as path, laboratory() as lab:
        shards = write_images(Path(path))
        for fault in options.faults:
            for system in options.systems:
                folder = Path(path) / f"{len(rows)}"
                folder.mkdir()
                lab.have(FAULTS[fault].nodes)
                with training(lab, CONTENDERS[system], folder, shards) as at_work:
                    turns = list(take_turns(lab, at_work, folder, FAULTS[fault], options))
                rows.append(Row(fault, system, turns, options.cutoff))
                if not options.json:
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


@contextmanager
def training(
    lab: Laboratory, contender: Contender, folder: Path, shards: Path
) -> Iterator[Callable[[], System]]:
    """A system at work.

    Yields a function that returns it, and raises RuntimeError when its driver has ended.
    """
    Assignment(folder, lab.address, shards, contender.warm_spare).write()
    words = ("pipelines.bench.faults.driver", contender.module, str(folder))
    output = folder / "driver.txt"
    driver = lab.drive(*words, output=output)
    system = contender.watch(lab, folder)

    def at_work() -> System:
        if driver.poll() is not None:
            raise RuntimeError(f"the driver has ended:\n{output.read_text()[-LONGEST:]}")
        return system

    try:
        yield at_work
    finally:
        lab.kill("driver")
        wait_until(
            lambda: not any(lab.processes(having=kind) for kind in WORKER_PROCESSES),
            "no worker is left",
        )


def take_turns(
    lab: Laboratory,
    at_work: Callable[[], System],
    folder: Path,
    fault: Fault,
    options: argparse.Namespace,
) -> Iterator[Recovery]:
    """Inject the fault again and again, in the workers by turns."""
    spent, reached = 0.0, 0
    for turn in range(options.turns):
        if spent > options.enough:
            return
        rank = (turn + 1) % WORKERS
        wait_until(partial(is_time, at_work, reached), "training", START_SECONDS)
        reached = at_work().steps()
        victim = Victim(lab, *at_work().worker(rank), rank, folder)
        since = time.time()
        fault.inject(victim)
        while (found := at_work().recovery(since)) is None:
            if time.time() - since > options.cutoff:
                yield Recovery(None)
                return
            time.sleep(POLL_SECONDS)
        spent += found.total or 0.0
        yield found
        if fault.takes_node:
            lab.end(victim.node)
            lab.have(fault.nodes)


def is_time(at_work: Callable[[], System], reached: int) -> bool:
    """Whether all is ready, at least half of the steps between two checkpoints are done, and a
    checkpoint has followed step `reached`: the same error twice at the same step would end the run.
    """
    if not at_work().ready():
        return False
    interval, within = divmod(at_work().steps(), CHECKPOINT_EVERY)
    return interval > reached // CHECKPOINT_EVERY and within >= CHECKPOINT_EVERY // 2


if __name__ == "__main__":
    main()
