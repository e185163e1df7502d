"""What a user sees while a pipeline runs: a line per stage, and a bar for the running one."""

from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipelines.graph import StageContext, StageResult
from pipelines.runtime.events import Point

QUARTER = 0.25


class Screen:
    """Writes to a console: bars on a terminal, a line per quarter where output is piped."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._stage = ""
        self._told = 0.0

    def stage_starts(self, context: StageContext, status: str, reason: str) -> None:
        self.starts(context.stage.name, reason, "goes on" if status == "resumed" else "starts")

    def starts(self, name: str, text: str, verb: str = "starts") -> None:
        """Print that something begins, and show its bar."""
        self._stage, self._told = name, 0.0
        self.console.print(f"[bold]{name}[/bold] {verb}: {escape(text)}", highlight=False)
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("  "),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(self._stage, total=1.0, text="starting")
            self._bar.start()

    def progress(self, fraction: float, text: str) -> None:
        """Show how far the stage is."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=fraction, text=text)
        elif fraction >= self._told + QUARTER and fraction < 1:
            self._told = fraction // QUARTER * QUARTER
            self.console.print(f"  {fraction:4.0%}  {text}", highlight=False)

    def note(self, text: str, style: str = "") -> None:
        """Print a line as it is: names of files may look like markup."""
        self.console.print(f"  {text}", style=style, markup=False, highlight=False)

    def stage_ends(self, result: StageResult) -> None:
        name = result.context.stage.name
        if result.status == "done":
            self.console.print(f"[bold]{name}[/bold] is done already", highlight=False)
            return
        self.stop()
        self.console.print(f"  [green]done[/green] in {result.seconds:.0f} s", highlight=False)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SpeedText:
    """Turns the points of a stage into text: images/s, loss, accuracy, MFU."""

    _SHOWN: ClassVar = {"epoch": ".1f", "loss": ".4f", "accuracy": ".3f"}

    def __init__(self) -> None:
        self._last: Point | None = None

    def text(self, point: Point) -> str:
        parts, values = [], point.values
        last, self._last = self._last, point if "images" in values else self._last
        if "images_per_second" in values:
            parts.append(f"{values['images_per_second']:,.0f} images/s")
        elif last is not None and values.get("images", 0) > last.values["images"]:
            images = values["images"] - last.values["images"]
            parts.append(f"{images / (point.time - last.time):,.0f} images/s")
        parts += [
            f"{name} {values[name]:{form}}" for name, form in self._SHOWN.items() if name in values
        ]
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.0%}")
        if not parts and "images" in values:  # The first point of an evaluation.
            return f"{values['images']:,} images"
        return "  ".join(parts)
