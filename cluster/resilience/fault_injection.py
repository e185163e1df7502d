"""Fault injection: scripted failures, so that recovery is tested rather than imagined.

The script is an environment variable with a line for each fault, for example

    CONVNEXTV2_FAULT="sigkill rank=1 step=30 marker=/tmp/fired"

After 30 steps, worker 1 writes the marker file and kills itself. With `phase=checkpoint` it does so
in its first checkpoint after at least 30 steps; likewise in other phases of the loop. While the
marker exists, the fault does not fire again, so the file tells that and when it has fired.

    sigkill | sigstop   the worker sends itself this signal
    raise | hang        it raises an exception, or sleeps forever
    agent               it kills its agent, so the kernel kills the worker
    nan                 the loss of this one step is NaN, also when the step is repeated
    spike               the loss of this one step is far too large, once
    flip                a bit of a weight flips, just before the workers compare their weights
    ask                 nothing more: another process acts when it sees the marker
"""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import nn

VARIABLE = "CONVNEXTV2_FAULT"
NODE = "CONVNEXTV2_NODE"
"""Names the node in the environment of its processes, where several share a machine."""
STEP, COMPARE = "step", "compare"
KINDS = ("sigkill", "sigstop", "raise", "hang", "agent", "nan", "spike", "flip", "ask")
_LINE = re.compile(
    rf"(?P<kind>{'|'.join(KINDS)}) rank=(?P<rank>\d+) step=(?P<step>\d+)"
    r"( phase=(?P<phase>[a-z-]+))? marker=(?P<marker>.+)"
)
HIGH_BIT = 20
"""Of fp32's mantissa: the weight changes by an eighth."""
FACTORS = {"nan": float("nan"), "spike": 1e4}
"""The loss of a step is multiplied by this, and so are its gradients."""


class InjectedFault(RuntimeError):
    """Raised by a fault of kind "raise"."""


@dataclass(frozen=True)
class Fault:
    """One scripted failure of the worker `rank`, in `phase`, after at least `step` steps."""

    kind: str
    rank: int
    step: int
    marker: Path
    phase: str = STEP

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line of the variable.

        Raises:
            ValueError: When it is not such a line.
        """
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(
                f"{VARIABLE}={line!r}: expected '<{'|'.join(KINDS)}> rank=R step=S [phase=P] "
                "marker=FILE'"
            )
        kind, rank, step, phase, marker = found.group("kind", "rank", "step", "phase", "marker")
        phase = phase or (COMPARE if kind == "flip" else STEP)
        return cls(kind, int(rank), int(step), Path(marker), phase)

    @property
    def line(self) -> str:
        return (
            f"{self.kind} rank={self.rank} step={self.step} phase={self.phase} marker={self.marker}"
        )

    def mark(self, rank: int, step: int) -> bool:
        """Write the marker; returns whether it was not there before."""
        now = {
            "kind": self.kind,
            "rank": rank,
            "step": step,
            "phase": self.phase,
            "time": time.time(),
            "host": os.environ.get(NODE) or socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            with self.marker.open("x") as file:
                file.write(json.dumps(now) + "\n")
        except FileExistsError:
            return False
        return True


class Injector:
    """Fires the faults of one worker."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = faults
        self._module: nn.Module | None = None
        self._factor = 1.0

    @classmethod
    def planned(cls) -> Self:
        """Read the faults from the environment; there may be none.

        Raises:
            ValueError: When a line cannot be parsed.
        """
        return cls([Fault.parse(line) for line in os.environ.get(VARIABLE, "").splitlines()])

    def watch(self, module: "nn.Module") -> None:
        """Take the module whose loss and weights are spoiled; its forward returns `.loss`."""
        self._module = module
        if any(fault.kind in FACTORS for fault in self.faults):
            module.register_forward_hook(self._spoil)

    def strike(self, rank: int, step: int, phase: str = STEP, world_size: int = 1) -> None:
        """Fire what is due on this worker, in this phase, after `step` steps."""
        if phase == STEP:
            self._factor = 1.0
        for fault in self.faults:
            if fault.phase != phase:
                continue
            if fault.kind == "nan":
                # A damaged image spoils its step whoever reads it, and each time.
                if step == fault.step and rank == fault.rank % world_size:
                    fault.mark(rank, step)
                    self._factor = FACTORS["nan"]
            elif rank == fault.rank and step >= fault.step and fault.mark(rank, step):
                self._fire(fault, step)

    def _fire(self, fault: Fault, step: int) -> None:
        if fault.kind in ("sigkill", "sigstop"):
            os.kill(os.getpid(), getattr(signal, fault.kind.upper()))
        elif fault.kind == "agent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)  # The kernel kills this process, too, a moment later.
        elif fault.kind == "spike":
            self._factor = FACTORS["spike"]
        elif fault.kind == "flip":
            self._flip()
        elif fault.kind == "raise":
            raise InjectedFault(f"planned fault on rank {fault.rank} after step {step}")
        while fault.kind == "hang":
            time.sleep(1)

    def _spoil(self, module: "nn.Module", inputs: object, output: Any) -> Any:
        if self._factor == 1.0:
            return output
        return output._replace(loss=output.loss * self._factor)

    def _flip(self) -> None:
        import torch

        assert self._module is not None
        weight = next(self._module.parameters()).detach()
        bits = weight.view(-1).view({2: torch.int16, 4: torch.int32}[weight.element_size()])
        bits[0] ^= 1 << min(HIGH_BIT, 8 * weight.element_size() - 12)
