"""Saving while training goes on: the loop waits only until the states are copied to the host.

    save(step)  wait for the save before -> copy to the host -> return
                                            thread: write, fsync, hash, agree, rename, prune

The thread talks to those of the other workers through a group of its own (gloo), so that its
messages never mix with the training's.
"""

import logging
import threading
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import group
from cluster.checkpoint.fragment_files import file_name, write_fragments
from cluster.checkpoint.fragments import StateFragment
from cluster.checkpoint.host_copy import HostCopy, on_host
from cluster.checkpoint.publishing import publish
from cluster.checkpoint.retention import KeepPolicy, prune
from cluster.checkpoint.store import Checkpoint
from cluster.durable import FileDigest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A save that is done: the checkpoint, and how long it was written in the background."""

    checkpoint: Checkpoint
    seconds: float


class Saver:
    """Publishes checkpoints of this worker's fragments, together with the other workers.

    Args:
        root: Folder of the run's checkpoints, on storage that all workers share.
        policy: Which of them stay.
        asynchronous: Write in a thread; else `save` returns when the checkpoint is published.

    All workers call its methods in the same order.
    """

    def __init__(self, root: Path, policy: KeepPolicy, *, asynchronous: bool = True) -> None:
        self.root, self.policy, self.asynchronous = root, policy, asynchronous
        self._copy = HostCopy()
        self._workers = group.new_group()
        self._thread: threading.Thread | None = None
        self._saved: Saved | None = None
        self._error: BaseException | None = None

    def prepare(self, fragments: list[StateFragment]) -> None:
        """Take the memory for copies now, so that the first save does not do it amid training.

        Raises:
            MemoryError: When there is not enough.
        """
        parts = _own_parts(fragments)
        if self._copies(parts):
            self._copy.allocate(parts)

    def save(
        self, step: int, fragments: list[StateFragment], notes: dict[str, Any]
    ) -> Saved | None:
        """Begin to save a step; returns the save before it, unless `wait` has returned it.

        Raises:
            CheckpointError: On every worker, when the save before this one failed (or this one,
                if not asynchronous).
        """
        before = self.wait()
        parts = _own_parts(fragments)
        if self._copies(parts):
            parts = self._copy.take(parts)
        self._thread = threading.Thread(
            target=self._publish,
            args=(step, parts, deepcopy(notes)),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        return before if self.asynchronous else self.wait()

    def wait(self) -> Saved | None:
        """Wait until the save that is under way is published; None when there was none.

        Raises:
            CheckpointError: On every worker, when it failed.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._saved

    def _copies(self, parts: list[StateFragment]) -> bool:
        return self.asynchronous or not on_host(parts)

    def _publish(self, step: int, fragments: list[StateFragment], notes: dict[str, Any]) -> None:
        begin = time.perf_counter()

        def write(directory: Path) -> dict[str, FileDigest]:
            name = file_name(group.rank())
            return {name: write_fragments(directory / name, fragments)}

        try:
            checkpoint = publish(self.root, step, write, notes, self._workers)
            self._saved = Saved(checkpoint, time.perf_counter() - begin)
        except BaseException as error:
            self._error = error
            return
        if group.rank() == 0:
            try:
                prune(self.root, self.policy)
            except Exception as error:
                # The step is saved: training goes on, and the next save prunes again.
                log.warning("old checkpoints in %s stay: %s", self.root, error)


def _own_parts(fragments: list[StateFragment]) -> list[StateFragment]:
    """What this worker saves of the fragments it keeps."""
    return [fragment.saved_by(group.rank(), group.world_size()) for fragment in fragments]
