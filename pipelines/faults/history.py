"""Which samples a run has used, from what its workers noted (`pipelines.training.data.sample_log`).

Steps that a fault has discarded were done again, by a later group. The history that the weights
come from has every step once: of the last group that started before it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnextv2.data.order.global_order import GlobalOrder
from pipelines.config import DataConfig
from pipelines.runtime.events import Start, read_events
from pipelines.training.anomalies.nonfinite import RECIPES
from pipelines.training.anomalies.spikes import Windows
from pipelines.training.data.sample_log import FOLDER, MODULUS, digest
from pipelines.training.data.samples import training_order

MOST = 3
"""Problems that are told of a stage; there may be thousands."""


@dataclass(frozen=True)
class Used:
    """Number and digest of the samples that one worker took in a step."""

    samples: int
    digest: int


def used_once(stage: Path) -> tuple[int, list[str]]:
    """Compare the samples of a finished stage with the order that its settings name.

    Returns:
        How many samples its history has; and problems, none if every sample of every epoch was
        used exactly once, but for those that an epoch leaves out because they make no global
        batch, and for steps that are left out around a spike of the loss.
    """
    starts = [event for event in read_events(stage) if isinstance(event, Start)]
    noted = {start.generation: _read(stage, start) for start in starts}
    if not starts or not all(noted.values()):
        return 0, [f"{stage}: the workers have not noted their samples"]
    order = order_of(stage, starts[0])
    problems, total = list(_repeated(order, starts[-1].total)), 0
    windows = Windows.read(stage)
    for step in range(starts[-1].total):
        if step in windows:  # A spike of the loss, whose steps are left out.
            continue
        group = [start for start in starts if start.step <= step][-1]
        parts = [of_rank.get(step) for of_rank in noted[group.generation]]
        samples = order.batch(*divmod(step, order.batches_per_epoch))
        taken = [part for part in parts if part is not None]
        if len(taken) < group.workers:
            problems.append(f"{stage}: not all workers have noted the samples of step {step + 1}")
        elif sum(part.samples for part in taken) != len(samples) or (
            sum(part.digest for part in taken) % MODULUS != digest(samples)
        ):
            problems.append(f"{stage}: step {step + 1} was not trained on the samples of its batch")
        total += sum(part.samples for part in taken)
    return total, problems[:MOST]


def last_step(stage: Path, generation: int) -> int:
    """How many steps a group of workers had begun when it ended; 0 if it noted none."""
    path = _path(stage, generation, 0)
    return max(_noted(path), default=-1) + 1 if path.exists() else 0


def order_of(stage: Path, start: Start) -> GlobalOrder:
    """The order of the samples, from the settings that a group has noted."""
    path = _path(stage, start.generation, 0)
    settings: dict[str, Any] = json.loads(path.read_text().partition("\n")[0])["settings"]
    ((kind, recipe),) = settings["recipe"].items()
    return training_order(
        (stage / settings["shards"]).resolve(),
        RECIPES[kind].model_validate(recipe),
        DataConfig.model_validate(settings["data"]),
        settings["seed"],
    )


def _repeated(order: GlobalOrder, steps: int) -> Iterator[str]:
    """Epochs whose global batches do not have each of their samples once."""
    for epoch in range(-(-steps // order.batches_per_epoch)):
        batches = [order.batch(epoch, number) for number in range(order.batches_per_epoch)]
        different = len(np.unique(np.concatenate(batches)))
        if different != order.samples_per_epoch:
            yield f"epoch {epoch} has {different} samples, not {order.samples_per_epoch}"


def _read(stage: Path, start: Start) -> Sequence[dict[int, Used]]:
    """What each worker of a group has noted, by rank and step; empty if one has not."""
    found = []
    for rank in range(start.workers):
        path = _path(stage, start.generation, rank)
        if not path.exists():
            return []
        found.append(_noted(path))
    return found


def _noted(path: Path) -> dict[int, Used]:
    """What a worker has noted, by step, without a line that its end has cut off."""
    whole, _, _ = path.read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()[1:]]
    return {line["step"]: Used(line["samples"], line["digest"]) for line in lines}


def _path(stage: Path, generation: int, rank: int) -> Path:
    return stage / FOLDER / f"generation-{generation}-rank-{rank}.jsonl"
