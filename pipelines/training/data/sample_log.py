"""An optional record of the samples that every worker trained on, for `convnextv2 faults`.

    samples/generation-3-rank-1.jsonl      in the stage's folder; the generation is the lease's

The first line has the settings of the job, each other one a step: how many samples the worker took,
and their digest. Digests of several workers or steps add up modulo 2^64, whatever the order, so a
record of any run is small and can be compared with what the order says. Two different sets of
samples have the same digest with a chance of 2^-64.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
from torch import Tensor

from cluster.resilience.journal import Journal
from convnextv2.randomness import UInt64Array, mix
from convnextv2.tasks.batch import Batch
from pipelines.training.anomalies.nonfinite import settings_of
from pipelines.training.job import TrainJob

VARIABLE = "CONVNEXTV2_SAMPLE_LOG"
"""Set to anything, it has every worker keep the record."""
FOLDER = "samples"
MODULUS = 1 << 64


def digest(samples: UInt64Array) -> int:
    """The sum of the scrambled sample numbers, modulo 2^64."""
    return int(mix(samples + np.uint64(1)).sum(dtype=np.uint64))


class SampleLog:
    """Writes the record of one worker in one group, or nothing without a `path`."""

    def __init__(self, path: Path | None) -> None:
        self._journal = None if path is None else Journal(path)

    @classmethod
    def planned(cls, job: TrainJob, rank: int, generation: int) -> Self:
        """The record that the environment asks for."""
        if not os.environ.get(VARIABLE):
            return cls(None)
        folder = job.directory / FOLDER
        folder.mkdir(exist_ok=True)
        log = cls(folder / f"generation-{generation}-rank-{rank}.jsonl")
        log._append({"settings": settings_of(job)})
        return log

    def recorded(self, step: int, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on a step's micro batches, and record them once all have been asked for."""
        if self._journal is None:
            yield from batches
            return
        taken: list[Tensor] = []
        for batch in batches:
            taken.append(batch.indices)
            yield batch
        samples = np.concatenate([indices.numpy() for indices in taken]).astype(np.uint64)
        self._append({"step": step, "samples": len(samples), "digest": digest(samples)})

    def flush(self) -> None:
        """Wait until all of it is written; at most a minute, while the storage fails."""
        if self._journal is not None:
            self._journal.flush()

    def _append(self, content: dict[str, object]) -> None:
        assert self._journal is not None
        self._journal.append(json.dumps(content))
