"""Runs the pipeline of a plan, undisturbed and disturbed, each by drivers of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.laboratory.nodes import Laboratory
from cluster.laboratory.processes import command_line
from cluster.resilience.fault_injection import VARIABLE
from convnextv2.durable import atomically
from pipelines.config import PipelineConfig
from pipelines.config.file import CONFIG, as_yaml
from pipelines.faults.nodes import Acted, Nodes
from pipelines.faults.plan import FaultPlan
from pipelines.faults.schedule import Fired, Scheduled
from pipelines.graph.complete import COMPLETE
from pipelines.runtime.events import EVENTS_FILE
from pipelines.training.anomalies import spikes
from pipelines.training.data import sample_log

POLL_SECONDS = 0.1
LEAVE_SECONDS = 60.0
# Runs of the laboratory are tracked in their own folders, wherever the environment would have them.
TRACKING = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")


class UndisturbedFailed(RuntimeError):
    """The run fails without any fault, so there is nothing to try out."""


@dataclass
class Disturbed:
    """How the disturbed run went.

    Attributes:
        code: Exit code of the last driver; None if it was ended because it took too long.
        fired: What the workers noted, by the faults' numbers.
        acted: What was done from outside the workers, likewise.
        left: Command lines of workers and agents that outlived the last driver; None if the nodes
            are elsewhere.
    """

    code: int | None = None
    fired: dict[int, Fired] = field(default_factory=dict)
    acted: dict[int, Acted] = field(default_factory=dict)
    left: list[str] | None = None


@dataclass
class Runner:
    """Starts drivers, on nodes of the laboratory or on the cluster that the plan names.

    Args:
        plan: The plan.
        config: The configuration of its run.
        folder: Gets a folder for each run, and what their drivers print.
        laboratory: The nodes on this machine, if the plan asks for them.
        say: Gets sentences for the screen.
    """

    plan: FaultPlan
    config: PipelineConfig
    folder: Path
    laboratory: Laboratory | None
    say: Callable[[str], None]

    def undisturbed(self, faults: Sequence[Scheduled]) -> Path:
        """Run with no faults but those of the data ("nan"); returns the run's folder.

        What the disturbed run has left out around spikes, if it came first, is left out from the
        start.

        Raises:
            UndisturbedFailed: When that run fails.
        """
        self.say("the undisturbed run")
        self._take_over("disturbed", "undisturbed")
        of_data = [fault for fault in faults if fault.what == "nan"]
        driver = self._start("undisturbed", of_data)
        try:
            code = driver.wait(60 * self.plan.minutes)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(driver)
        if code != 0:
            raise UndisturbedFailed(
                "the run fails without any fault; what it printed is in "
                f"{self._printed('undisturbed')}"
            )
        return self.folder / "undisturbed"

    def disturbed(self, faults: Sequence[Scheduled]) -> Disturbed:
        """Run with all faults; a driver that is killed by one is started again."""
        self.say(f"the disturbed run, with {len(faults)} faults")
        found = Disturbed()
        self._take_over("undisturbed", "disturbed")
        for fault in faults:  # Those of the data have fired in the undisturbed run.
            fault.marker.unlink(missing_ok=True)
        nodes = Nodes(self.laboratory, self.plan, self.folder / "disturbed")
        deadline = time.monotonic() + 60 * self.plan.minutes
        driver = self._start("disturbed", faults)
        try:
            while time.monotonic() < deadline:
                found.code = driver.poll()
                for fault in self._newly_fired(faults, found):
                    if fault.what == "kill driver":
                        driver.kill()
                        driver.wait()
                        found.acted[fault.number] = Acted(time.time())
                        driver = self._start("disturbed", faults)
                        found.code = None
                    elif fault.kind.injected == "ask":
                        found.acted[fault.number] = nodes.befall(fault, found.fired[fault.number])
                if found.code is not None:
                    break
                nodes.replace_lost()
                time.sleep(POLL_SECONDS)
        finally:
            _end(driver)
            nodes.close()
        found.left = self._left_over()
        return found

    def _take_over(self, earlier: str, name: str) -> None:
        """Link what an earlier run has written before training, to save the time; and have a run
        leave out the same steps around spikes of the loss.
        """
        for stage in (self.folder / earlier).glob("stages/*/*"):
            copy = self.folder / name / stage.relative_to(self.folder / earlier)
            if (stage / spikes.FILE).exists():
                copy.mkdir(parents=True)
                shutil.copy(stage / spikes.FILE, copy)
            elif (stage / COMPLETE).exists() and not (stage / EVENTS_FILE).exists():
                shutil.copytree(stage, copy, copy_function=os.link)

    def _newly_fired(self, faults: Sequence[Scheduled], found: Disturbed) -> list[Scheduled]:
        new = []
        for fault in faults:
            if fault.number not in found.fired and (fired := fault.fired()) is not None:
                self.say(f"fault {fault.number}: {fault.what} ({fault.place}), step {fired.step}")
                found.fired[fault.number] = fired
                new.append(fault)
        return new

    def _start(self, name: str, faults: Sequence[Scheduled]) -> subprocess.Popen[bytes]:
        config = self.folder / CONFIG
        with atomically(config) as partial:
            partial.write_text(as_yaml(self.config))
        address = self.plan.cluster.address
        if self.laboratory is not None:
            address = self.laboratory.address
        words = ["pipelines", self.plan.run.stage, "--config", str(config)]
        words += ["--run-dir", str(self.folder / name), "--set", f"cluster.address={address}"]
        environment: Mapping[str, str] = {
            **dict.fromkeys(TRACKING, ""),
            VARIABLE: "\n".join(fault.line for fault in faults),
            sample_log.VARIABLE: "1",
        }
        output = self._printed(name)
        if self.laboratory is not None:
            return self.laboratory.drive(*words, environment=environment, output=output)
        with output.open("ab") as printed:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**os.environ, **environment},
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )

    def _printed(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def _left_over(self) -> list[str] | None:
        """Workers and agents that are still there some time after their driver has ended.

        Nodes that are still frozen go on, so their workers find out that nobody waits for them.
        """
        lab = self.laboratory
        if lab is None:
            return None
        for node in lab.nodes:
            lab.thaw(node)
        deadline = time.monotonic() + LEAVE_SECONDS
        while True:
            workers = lab.agents() + lab.children()
            left = [line for each in workers if (line := command_line(each))]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(POLL_SECONDS)


def _end(driver: subprocess.Popen[bytes]) -> None:
    """End a driver that still runs; the first signal lets its workers save and leave."""
    for signum, seconds in ((signal.SIGINT, 60.0), (signal.SIGKILL, 60.0)):
        if driver.poll() is None:
            driver.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(seconds)
