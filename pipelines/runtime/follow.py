"""Passes the events of a stage on to the screen and MLflow while its workers write them."""

from pathlib import Path

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


class Follower:
    """Follows a stage, from the events written after this object is made.

    Args:
        directory: The folder of the stage.
        run: The name of its run in MLflow.
        live: Computes its goodput.
        screen: Receives notes and progress.
        tracker: Receives the measurements.
    """

    def __init__(
        self, directory: Path, run: str, live: Live, screen: Screen, tracker: Tracker
    ) -> None:
        self._reader = EventReader(directory, from_end=True)
        self._run, self._live, self._screen, self._tracker = run, live, screen, tracker
        self._speed = SpeedText()
        self._total = 1

    def look(self) -> None:
        """Report the new events."""
        events = self._reader.new_events()
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
                f"step {event.step} was left out: loss or gradient not finite on some worker "
                f"({event.skipped_steps} so far)"
            )
        case Interval():
            return event.in_words()
        case SaveFailed():
            return (
                f"the checkpoint of step {event.step} is given up after {event.tries} tries, and "
                f"training goes on: {event.reason}"
            )
        case Rejected():
            return f"checkpoint {event.path} is not whole and is passed over: {event.reason}"
    return None
