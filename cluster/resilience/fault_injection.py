"""Fault injection: scripted failures, so that recovery is tested rather than imagined.

A plan is one environment variable, for example

    CONVNEXTV2_FAULT="sigkill rank=1 step=30 marker=/tmp/fired"

The worker of that rank kills itself before that step (or raises, or hangs forever) after it has
written the marker file. "spike" makes the loss of that step far too large instead. While that file
exists, the fault does not fire again; tests use it to assert that the fault has fired.
"""

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

VARIABLE = "CONVNEXTV2_FAULT"
_PLAN = re.compile(r"(sigkill|raise|hang|spike) rank=(\d+) step=(\d+) marker=(.+)")


class InjectedFault(RuntimeError):
    """Raised by a planned fault of kind "raise"."""


@dataclass(frozen=True)
class Fault:
    """One planned failure of the worker `rank` before `step`."""

    kind: str
    rank: int
    step: int
    marker: Path

    @classmethod
    def planned(cls) -> Self | None:
        """Read the plan from the environment; None if there is none.

        Raises:
            ValueError: When the plan cannot be parsed.
        """
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        plan = _PLAN.fullmatch(text)
        if plan is None:
            raise ValueError(
                f"{VARIABLE}={text!r}: expected '<sigkill|raise|hang|spike> rank=R step=S "
                "marker=FILE'"
            )
        kind, rank, step, marker = plan.groups()
        return cls(kind, int(rank), int(step), Path(marker))

    def fire(self, rank: int, step: int) -> bool:
        """Fail if the plan names this worker and step, and has not fired before.

        Returns:
            Whether the caller is to spoil the loss of this step.
        """
        if (rank, step) != (self.rank, self.step) or self.marker.exists():
            return False
        self.marker.write_text(f"{self.kind} rank {rank} step {step}\n")
        if self.kind == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        while self.kind == "hang":
            time.sleep(1)
        if self.kind == "spike":
            return True
        raise InjectedFault(f"planned fault on rank {rank} before step {step}")
