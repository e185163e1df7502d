"""Saves while training continues: the loop waits only until the states are copied to the host.

    save(step)  wait for the previous save -> copy to the host -> return
                                              thread: write, fsync, hash, agree, rename, prune

A save that fails because of the storage is retried, and given up after the last try. Training goes
on to the next checkpoint, and ends when several saves in a row were given up.

The threads of the workers communicate through a gloo group of their own, so their messages never
mix with those of training.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import group
from cluster.checkpoint.fragment_files import file_name, write_fragments
from cluster.checkpoint.fragments import StateFragment
from cluster.checkpoint.host_copy import HostCopy, on_host
from cluster.checkpoint.publishing import StorageError, Write, publish
from cluster.checkpoint.retention import KeepPolicy, prune
from cluster.checkpoint.store import Checkpoint, CheckpointError
from cluster.durable import FileDigest
from cluster.resilience.lease import Lease
from cluster.workers.current import Final

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between tries: storage that is away for a minute costs no checkpoint."""


@dataclass(frozen=True)
class Saved:
    """A finished save: the checkpoint, and the seconds that writing it took in the background."""

    checkpoint: Checkpoint
    seconds: float


@dataclass(frozen=True)
class Unsaved:
    """A save that was given up because of the storage: the reason, the number of tries, and how
    many saves in a row have been given up, including this one.
    """

    step: int
    reason: str
    tries: int
    in_a_row: int


class SavesFailed(CheckpointError, Final):
    """Too many saves in a row were given up."""


class Saver:
    """Publishes checkpoints of this worker's fragments, together with the other workers.

    Args:
        root: Folder of the run's checkpoints, on storage that all workers share.
        policy: Which checkpoints to keep.
        asynchronous: Write in a thread; otherwise `save` returns after publishing.
        lease: The lease of this attempt, if there can be others.
        pauses: Seconds to wait before each retry after a storage failure. The next save ends the
            retries, because its state is newer.
        max_failed: This many given up saves in a row are an error.
        lost: Called on every worker, by `save` or `wait`, with a save that was given up.

    All workers call its methods in the same order.
    """

    def __init__(
        self,
        root: Path,
        policy: KeepPolicy,
        *,
        asynchronous: bool = True,
        lease: Lease | None = None,
        pauses: Sequence[float] = (),
        max_failed: int = 1,
        lost: Callable[[Unsaved], None] = lambda unsaved: None,
    ) -> None:
        self.root, self.policy, self.asynchronous, self.lease = root, policy, asynchronous, lease
        self.pauses, self.max_failed, self._tell_lost = pauses, max_failed, lost
        self._failed = 0
        self._newer_waits = threading.Event()
        self._copy = HostCopy()
        self._workers = group.new_group()
        self._thread: threading.Thread | None = None
        self._outcome: Saved | Unsaved | None = None
        self._error: BaseException | None = None

    def prepare(self, fragments: list[StateFragment]) -> None:
        """Allocate the memory for copies now, so that the first save does not have to.

        Raises:
            MemoryError: When there is not enough.
        """
        parts = _own_parts(fragments)
        if self._copies(parts):
            self._copy.allocate(parts)

    def save(
        self, step: int, fragments: list[StateFragment], notes: dict[str, Any]
    ) -> Saved | None:
        """Begin to save a step; returns the previous save, unless `wait` has returned it.

        Raises:
            CheckpointError: On every worker, when the previous save (or this one, if not
                asynchronous) failed for another reason than the storage; `SavesFailed` when the
                storage has failed too often in a row.
            Superseded: On every worker, when a newer attempt saves there.
        """
        self._newer_waits.set()
        before = self.wait()
        self._newer_waits.clear()
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

    def finish(self) -> Saved | None:
        """Wait for the last save, which must succeed: it holds the result of training.

        Raises:
            CheckpointError: On every worker, when it failed.
        """
        saved, last = self.wait(), self._outcome
        if isinstance(last, Unsaved):
            raise CheckpointError(f"{last.reason} (tried {last.tries} times)")
        return saved

    def wait(self) -> Saved | None:
        """Wait for the save in progress; returns None when there was none, or it was given up.

        Raises:
            CheckpointError: As in `save`.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if isinstance(self._outcome, Unsaved):
            self._tell_lost(self._outcome)
            return None
        return self._outcome

    def _copies(self, parts: list[StateFragment]) -> bool:
        return self.asynchronous or not on_host(parts)

    def _publish(self, step: int, fragments: list[StateFragment], notes: dict[str, Any]) -> None:
        def write(directory: Path) -> dict[str, FileDigest]:
            name = file_name(group.rank())
            return {name: write_fragments(directory / name, fragments)}

        try:
            self._outcome = self._persist(step, write, notes)
        except BaseException as error:
            self._error = error
            return
        if group.rank() == 0:
            try:
                prune(self.root, self.policy)
            except Exception as error:
                # The checkpoint itself is published; the next save prunes again.
                log.warning("old checkpoints in %s stay: %s", self.root, error)

    def _persist(self, step: int, write: Write, notes: dict[str, Any]) -> Saved | Unsaved:
        """Publish, with retries while the storage fails; all workers retry together."""
        begin, tries = time.perf_counter(), 0
        while True:
            tries += 1
            try:
                checkpoint = publish(
                    *(self.root, step, write, notes, self._workers, self.lease), again=tries > 1
                )
            except StorageError as error:
                log.warning("%s", error)
                reason = str(error)
            else:
                self._failed = 0
                return Saved(checkpoint, time.perf_counter() - begin)
            given_up = tries > len(self.pauses) or self._newer_waits.wait(self.pauses[tries - 1])
            if any(group.all_gather(given_up, self._workers)):
                break
        self._failed += 1
        if self._failed >= self.max_failed:
            raise SavesFailed(self._in_words(step, reason))
        return Unsaved(step, reason, tries, self._failed)

    def _in_words(self, step: int, reason: str) -> str:
        if self.max_failed == 1:
            return reason
        return (
            f"{self._failed} checkpoints in a row could not be saved, the last one of step {step}: "
            f"{reason}. Free space there or have it mounted again: the same command goes on from "
            "the last good checkpoint"
        )


def _own_parts(fragments: list[StateFragment]) -> list[StateFragment]:
    """The parts of its fragments that this worker saves."""
    return [fragment.saved_by(group.rank(), group.world_size()) for fragment in fragments]
