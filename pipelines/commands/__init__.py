"""Groups of commands, one file each: arguments, and what a command prints."""

import argparse
import sys
from typing import Any


def command(commands: Any, name: str, help_text: str, example: str) -> argparse.ArgumentParser:
    """Add a command to `commands` (what `add_subparsers` returned); its help ends in `example`."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def say(words: str) -> None:
    """Tell a person what is being done, before libraries are imported, which takes seconds."""
    print(words, file=sys.stderr, flush=True)
