"""The job of a test's workers: steps on weights, where one worker has a bit flipped once."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.engine.divergence import check_replicas
from cluster.workers.current import worker


@dataclass(frozen=True)
class Flip:
    """Ten steps: a checkpoint, which is a file, after the fifth; the bit flips in the eighth."""

    folder: Path
    rank: int


def run(flip: Flip) -> None:
    rank, here, weight = dist.get_rank(), worker(), torch.ones(3)
    saved = flip.folder / "saved"
    began = int(saved.read_text()) if saved.exists() else 0
    here.beacon.began = began
    here.beacon.stepped(began)
    for step in range(began + 1, 11):
        here.beacon.enter("step", usual=1.0)
        weight += 1
        fired = flip.folder / "fired"
        if rank == flip.rank and step == 8 and not fired.exists():
            fired.touch()
            weight.view(torch.int32)[1] ^= 1
        here.beacon.stepped(step)
        check_replicas([weight], step)
        here.milestone("first step")
        if rank == 0:
            with (flip.folder / "steps").open("a") as file:
                file.write(f"{step}\n")
            if step == 5:
                saved.write_text("5")
        dist.barrier()
