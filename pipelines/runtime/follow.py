"""Passes the events of a stage on to the screen and MLflow while its workers write them."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cluster.resilience.incidents import Incident
from pipelines.runtime.console import Screen, SpeedText
from pipelines.runtime.events import (
    Event,
    EventReader,
    Interval,
    Measured,
    Point,
    Rejected,
    SaveFailed,
    SharedGPU,
    Skipped,
    Start,
)
from pipelines.runtime.live import Live
from pipelines.runtime.tracking import Tracker

LAST_SECONDS = 10.0
"""How long the end of a stage waits for what is still to be shown."""

log = logging.getLogger(__name__)


class EventForwarder:
    """Follows a stage, from the events written after this object is made.

    Args:
        directory: The folder of the stage.
        run: The name of its run in MLflow.
        live: Computes its goodput, and keeps the incidents.
        screen: Receives notes and progress.
        tracker: Receives the measurements and incidents.
    """

    def __init__(
        self, directory: Path, run: str, live: Live, screen: Screen, tracker: Tracker
    ) -> None:
        self._reader = EventReader(directory, from_end=True)
        self._run, self._live, self._screen, self._tracker = run, live, screen, tracker
        self._speed = SpeedText()
        self._total = 1
        # Also what a driver that was killed did not send any more.
        self._track_incidents()

    def look(self) -> None:
        """Report the new events; none while the storage fails."""
        try:
            events = self._reader.new_events()
        except OSError as error:
            log.debug("the events cannot be read: %s", error)
            return
        summaries = self._live.follow(events)
        for event in events:
            if isinstance(event, Start):
                self._total = event.total
            if isinstance(event, Point):
                text = f"{self._speed.text(event)}  {self._live.words}".rstrip()
                self._screen.progress(event.step / self._total, text)
            if isinstance(event, SaveFailed):
                self._tracker.tag(self._run, f"save_failed.{event.step}", event.reason)
            sentence = in_words(event)
            if sentence:
                self._screen.note(sentence)
        measured = [event for event in events if isinstance(event, Measured)]
        self._tracker.points(self._run, [*measured, *summaries])

    def note(self, incident: Incident) -> None:
        """Record an incident; called when it happens, and again when training continues."""
        self._live.note(incident)
        self._track_incidents()

    def _track_incidents(self) -> None:
        """Send totals and the whole list, so whatever was sent before is brought up to date."""
        if metrics := self._live.incident_metrics:
            self._tracker.results(self._run, metrics)
            self._tracker.artifact(self._run, self._live.incident_log)


class OffThread:
    """Calls a function in a thread, one call at a time, and a last time at the end of its block.

    The function reads from shared storage, which may hang. The driver's main thread must not: it
    asks the agents for their status, and an agent that nobody asks ends its worker.

    Args:
        function: What it raises, the next call here raises.
        seconds: How long the end waits for each of the last two calls.
    """

    def __init__(self, function: Callable[[], None], seconds: float = LAST_SECONDS) -> None:
        self._function, self._seconds = function, seconds
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self()
        self._wait()
        self._raise()

    def __call__(self) -> None:
        """Begin a call, unless the last one goes on."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._raise()
        self._thread = threading.Thread(target=self._call, name="follow", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join(self._seconds)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _call(self) -> None:
        try:
            self._function()
        except Exception as error:
            self._error = error


def in_words(event: Event) -> str | None:
    """A sentence for the screen on an uncommon event; None for a common one."""
    match event:
        case Start() if event.step:
            return f"training goes on from step {event.step}"
        case SharedGPU():
            more = f", and {event.gpus - 1} more GPUs are shared" if event.gpus > 1 else ""
            return (
                f"training may be slow: on the GPU of worker {event.rank} on {event.host} "
                f"{event.users}{more}"
            )
        case Skipped():
            return (
                f"step {event.step} was skipped: some worker's loss or gradient is not finite "
                f"({event.skipped_steps} so far)"
            )
        case Interval():
            return event.in_words()
        case SaveFailed():
            return (
                f"the checkpoint of step {event.step} could not be saved in {event.tries} tries; "
                f"training goes on: {event.reason}"
            )
        case Rejected():
            return f"checkpoint {event.path} is damaged and is passed over: {event.reason}"
    return None
