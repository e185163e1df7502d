"""Groups of commands, one file each: arguments, and what a command prints."""

import argparse
import sys
from typing import NoReturn, TypeAlias

RENAMED = {
    "check": "verify",
    "export": "consolidate",
    "--average": "--ema",
    "--limit": "--max-images",
    "--hold-out": "--val-fraction",
}
"""Words that commands had before, and what they are called now."""


class Parser(argparse.ArgumentParser):
    """Its errors name the new word where an old one was given."""

    def error(self, message: str) -> NoReturn:
        given = message.replace("'", "").split()
        renamed = [f"{old} is called {new} now" for old, new in RENAMED.items() if old in given]
        super().error("; ".join([message, *renamed]))


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""What `add_subparsers` of a parser returns."""


def command(commands: Commands, name: str, help_text: str, example: str) -> Parser:
    """Add a command to `commands`; its help ends in `example`."""
    return commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def say(words: str) -> None:
    """Tell a person what is being done, before libraries are imported, which takes seconds."""
    print(words, file=sys.stderr, flush=True)
