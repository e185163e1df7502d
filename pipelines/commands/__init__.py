"""Groups of commands, one file each: their arguments, and what they print."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

RENAMED = {
    "check": "verify",
    "export": "consolidate",
    "--average": "--ema",
    "--limit": "--max-images",
    "--hold-out": "--val-fraction",
}
"""Old names of commands and options, and the names they have now."""


class Parser(argparse.ArgumentParser):
    """Its errors give the new name where an old one was used."""

    def error(self, message: str) -> NoReturn:
        given = message.replace("'", "").split()
        renamed = [f"{old} is called {new} now" for old, new in RENAMED.items() if old in given]
        super().error("; ".join([message, *renamed]))


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `add_subparsers` of a parser returns."""
Act = Callable[[argparse.Namespace], int]
"""Does what a command is for; returns its exit code."""


def command(
    commands: Commands, name: str, help_text: str, example: str, act: Act | None = None
) -> Parser:
    """Add a command to `commands`; its help ends in `example`.

    With `act`, the command takes --json and is run by it; without, the caller adds both.
    """
    made = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if act is not None:
        made.add_argument("--json", action="store_true", help="print the results as JSON")
        made.set_defaults(act=act)
    return made


def command_group(commands: Commands, name: str, help_text: str, example: str) -> Commands:
    """Add a command that has verbs, and return what these are added to."""
    group = command(commands, name, help_text, example)
    return group.add_subparsers(dest="verb", required=True, metavar="VERB")


def say(message: str) -> None:
    """Print what is being done before libraries are imported, which takes seconds."""
    print(message, file=sys.stderr, flush=True)


def check_run_folder(path: Path) -> None:
    """Raise ValueError where `path` is no run folder."""
    if not (path / "stages").is_dir():
        raise ValueError(
            f"{path} is no run folder: there is no {path / 'stages'}; give what was --run-dir, "
            "such as runs/demo"
        )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
