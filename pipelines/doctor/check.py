"""The outcome of one check of a machine."""

from dataclasses import dataclass
from typing import Literal

from rich.text import Text

MB, GB = 10**6, 10**9
SET_UP = "run `make setup`"

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: `advice` is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


def in_words(check: Check) -> Text:
    """The check as a line, and what to do in a line of its own; for printing unwrapped."""
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check.status]
    line = Text(f"{check.status:4}", style).append(f"  {check.name:14}  {check.found}", "default")
    return line.append(f"\n      {check.advice}", "default") if check.advice else line
