"""Spikes of the loss: training goes back to before one, and leaves out the steps around it.

PaLM's authors restarted from about 100 steps before a spike and skipped 200 to 500 batches, those
seen before and during it (arXiv 2204.02311, section 5.1); the same batches did no harm on other
weights. Here:

    checkpoint        first          spike            end
        |---- again ----|- - - - - left out - - - - - -|---- goes on
                          spike_window   spike_window

A step that is left out counts as a step, like one whose gradient is not finite: its samples are not
seen in this epoch, rate and length of training stay what they were. Which steps are left out is in
`spikes.json` in the stage's folder, and in every checkpoint. So what is trained stays a function of
(seed, step) and this list, and a resumed run is the straight one.
"""

import json
import logging
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import group
from cluster.checkpoint.store import (
    Checkpoint,
    RestoreSearch,
    good_by_size,
    latest_good,
    set_aside,
)
from cluster.resilience.lease import Lease
from cluster.workers.current import Final

FILE = "spikes.json"
HISTORY, FEWEST = 100, 20
"""A loss is compared with the median of the last HISTORY ones, once there are FEWEST."""
MOST = 20
"""Spikes of a stage, about as many as PaLM's largest model had: then the settings are wrong."""


log = logging.getLogger(__name__)


class LossSpike(Exception):
    """The loss of a step, counted from 1, is too far above the median of those before it."""

    def __init__(self, step: int, loss: float, median: float) -> None:
        super().__init__(step, loss, median)
        self.step, self.loss, self.median = step, loss, median


class TooManySpikes(Final):
    """A stage has had as many spikes as may be."""


class SpikeDetector:
    """Compares every step's loss with those before it. Without a factor nothing is a spike.

    Attributes:
        recent: The last losses; part of the training's state.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self.recent: deque[float] = deque(maxlen=HISTORY)

    def take(self, step: int, loss: float) -> None:
        """Take the loss of a step, the mean over workers, in the order of steps.

        Raises:
            LossSpike: When it is more than the factor times the median.
        """
        if self._factor is None:
            return
        if len(self.recent) >= FEWEST:
            median = statistics.median(self.recent)
            if loss > self._factor * median:
                raise LossSpike(step, loss, median)
        self.recent.append(loss)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Steps that are left out: after `first` steps are done, training goes on as after `end`.

    `step` had the spike, with this loss where the median had been `median`.
    """

    first: int
    end: int
    step: int
    loss: float
    median: float

    def in_words(self) -> str:
        return (
            f"at step {self.step} the loss was {self.loss:.4g}, {self.loss / self.median:,.1f} "
            f"times the median of the steps before; steps {self.first + 1} to {self.end} are left "
            "out"
        )


@dataclass(frozen=True)
class Windows:
    """All windows of a stage; they may overlap."""

    each: tuple[Window, ...] = ()

    @classmethod
    def read(cls, stage: Path) -> "Windows":
        """Those in a stage's folder.

        Raises:
            ValueError: When the file is damaged.
        """
        path = stage / FILE
        try:
            return cls.noted({"left_out": json.loads(path.read_text())})
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no list of windows ({error})") from error

    @classmethod
    def noted(cls, notes: Mapping[str, Any]) -> "Windows":
        """Those in the notes of a checkpoint."""
        return cls(tuple(Window(**each) for each in notes.get("left_out", ())))

    def as_notes(self) -> list[dict[str, Any]]:
        return [asdict(window) for window in self.each]

    def write(self, stage: Path, lease: Lease) -> None:
        """Put the file there, durably, unless a newer attempt has begun.

        Raises:
            Superseded: Then.
        """
        lease.publish(FILE, json.dumps(self.as_notes(), indent=1).encode(), into=stage)

    def __or__(self, others: "Windows") -> "Windows":
        return Windows(tuple(dict.fromkeys((*self.each, *others.each))))

    def __contains__(self, step: int) -> bool:
        """Whether the step that follows `step` others is left out."""
        return any(window.first <= step < window.end for window in self.each)

    def after(self, step: int) -> int:
        """How many steps are done or left out before the next one that is trained."""
        while step in self:
            step = max(window.end for window in self.each if window.first <= step < window.end)
        return step

    def fit(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint has not seen the steps that are left out."""
        known = self.noted(checkpoint.notes).each
        return all(checkpoint.step <= window.first or window in known for window in self.each)


def look_back(stage: Path, checkpoints: Path) -> tuple[RestoreSearch, Windows]:
    """On rank 0: the last good checkpoint, and the steps that are left out from there on.

    Checkpoints that have seen some of these steps are renamed, so that none is resumed from.
    """
    if group.rank() != 0:
        return RestoreSearch(None), Windows()
    windows = Windows.read(stage)
    if windows.each:
        for checkpoint in good_by_size(checkpoints):
            if not windows.fit(checkpoint):
                log.warning("%s has seen steps that are left out now", checkpoint.path)
                set_aside(checkpoint.path)
    return latest_good(checkpoints), windows


def leave_out(
    stage: Path,
    checkpoints: Path,
    windows: Windows,
    spike: LossSpike,
    *,
    reach: int,
    total: int,
    lease: Lease,
) -> Window:
    """Choose the steps around a spike and write them down; collective.

    They begin `reach` steps before the spike, or at the oldest checkpoint before it if that is
    later, for a checkpoint that has seen some of them is of no use.

    Raises:
        TooManySpikes: On every worker.
        Superseded: On rank 0, when a newer attempt has begun.
    """
    if len(windows.each) >= MOST:
        raise TooManySpikes(
            f"at step {spike.step} the loss was {spike.loss:.4g}, {spike.loss / spike.median:,.1f} "
            f"times the median, and there have been {MOST} such spikes already. A lower base_lr, "
            "grad_clip or a longer warmup may help; a larger spike_factor, or none, goes on from "
            "the last checkpoint by the same command"
        )
    window = None
    if group.rank() == 0:
        began = spike.step - 1
        there = [each.step for each in good_by_size(checkpoints) if windows.fit(each)]
        window = Window(
            first=first_left_out(began, reach, there),
            end=min(began + reach, total),
            step=spike.step,
            loss=spike.loss,
            median=spike.median,
        )
        Windows((*windows.each, window)).write(stage, lease)
    # Others wait for rank 0's file: the whole group is ended when the first of them raises.
    window = group.broadcast(window)
    assert window is not None
    return window


def first_left_out(began: int, reach: int, checkpoints: Sequence[int]) -> int:
    """Where a window begins if the spike is in the step after `began` steps."""
    first = max(0, began - reach)
    oldest = min((step for step in checkpoints if step <= began), default=0)
    return max(first, oldest)
