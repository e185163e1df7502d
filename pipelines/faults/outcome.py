"""What followed each fault: the incident that it caused, or what took its place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.resilience import incidents
from cluster.resilience.incidents import Incident
from pipelines.faults.disturb import Disturbed
from pipelines.faults.history import last_step
from pipelines.faults.schedule import Fired, Scheduled
from pipelines.runtime.events import Start, read_events
from pipelines.training.anomalies.nonfinite import FOLDER as NONFINITE

APART_SECONDS = 60.0
"""The times of a fault and of its incident differ by less: a hang counts from the beginning of its
phase, the loss of a node from its last answer, and machines' clocks differ.
"""
NECESSARY = ("detection", "teardown", "placement", "process group")


@dataclass(frozen=True)
class Outcome:
    """One fault, and what came of it; `incident` is the one that it caused.

    `followed` says what else followed, in words, and `problem` what should have.
    """

    fault: Scheduled
    fired: Fired | None
    incident: Incident | None = None
    followed: str = ""
    problem: str = ""


def outcomes(
    faults: Sequence[Scheduled], disturbed: Disturbed, run_dir: Path
) -> tuple[list[Outcome], list[Incident]]:
    """The outcome of every fault, and the incidents that none of them explains."""
    run = _Run.read(run_dir, disturbed)
    left = list(run.incidents)
    found: list[Outcome] = []
    # In the order of firing, because that is the order of the incidents.
    for fault in sorted(faults, key=lambda each: _time(disturbed.fired.get(each.number))):
        fired = disturbed.fired.get(fault.number)
        if fired is None:
            found.append(Outcome(fault, None, problem="it has not fired"))
        elif why := run.why_not_done(fault):
            found.append(Outcome(fault, fired, problem=why))
        elif run.must_have_incident(fault):
            outcome = run.with_incident(fault, fired, left)
            left = [each for each in left if each is not outcome.incident]
            found.append(outcome)
        else:
            found.append(run.without_incident(fault, fired))
    return sorted(found, key=lambda outcome: outcome.fault.number), left


def _time(fired: Fired | None) -> float:
    return float("inf") if fired is None else fired.time


@dataclass(frozen=True)
class _Run:
    """What is on record of the disturbed run; `starts` has the stage's folder of each."""

    folder: Path
    disturbed: Disturbed
    incidents: Sequence[Incident]
    starts: Sequence[tuple[Path, Start]]

    @classmethod
    def read(cls, folder: Path, disturbed: Disturbed) -> "_Run":
        starts = [
            (stage, event)
            for stage in folder.glob("stages/*/*")
            for event in read_events(stage)
            if isinstance(event, Start)
        ]
        starts.sort(key=lambda pair: pair[1].time)
        return cls(folder, disturbed, incidents.read(folder), starts)

    def why_not_done(self, fault: Scheduled) -> str:
        acted = self.disturbed.acted.get(fault.number)
        return "" if acted is None else acted.problem

    def must_have_incident(self, fault: Scheduled) -> bool:
        acted = self.disturbed.acted.get(fault.number)
        return fault.kind.cause is not None and (acted is None or acted.had_worker)

    def with_incident(self, fault: Scheduled, fired: Fired, left: Sequence[Incident]) -> Outcome:
        """The first of the incidents that are left whose cause is that of the fault."""
        for incident in left:
            near = abs(incident.time - fired.time) < APART_SECONDS
            if near and incident.cause == fault.kind.cause:
                problem = self._lacking(incident)
                return Outcome(fault, fired, incident, incident.error, problem)
        return Outcome(fault, fired, problem=f"no incident of cause {fault.kind.cause!r} followed")

    def without_incident(self, fault: Scheduled, fired: Fired) -> Outcome:
        if fault.what == "nan":
            step = fired.step + 1
            if any(self.folder.glob(f"stages/*/*/{NONFINITE}/step-{step}-rank-*.json")):
                return Outcome(fault, fired, followed=f"step {step} was left out, on all workers")
            return Outcome(fault, fired, problem=f"step {step} was not left out")
        acted = self.disturbed.acted.get(fault.number)
        if acted is None:
            return Outcome(fault, fired, problem="the run had ended before it could be done")
        if fault.what == "kill driver" or (fault.what == "preempt node" and acted.had_worker):
            return self._new_group(fault, fired, acted.time)
        return Outcome(fault, fired, followed="training went on")

    def _new_group(self, fault: Scheduled, fired: Fired, since: float) -> Outcome:
        """The group that went on without the node or the old driver."""
        later = [(stage, start) for stage, start in self.starts if start.time > since]
        if not later:
            return Outcome(fault, fired, problem="no new group of workers started")
        stage, start = later[0]
        lost = max(0, last_step(stage, start.generation - 1) - start.step)
        words = f"a new group went on after step {start.step}, {lost} steps were lost"
        interrupted = any(since < each.time < start.time for each in self.incidents)
        if fault.what == "preempt node" and lost and not interrupted:
            return Outcome(fault, fired, problem=words)
        return Outcome(fault, fired, followed=words)

    def _lacking(self, incident: Incident) -> str:
        """What the record of an incident lacks; "" for one that another interrupted."""
        if not incident.recovered:
            interrupted = any(each.time > incident.time for each in self.incidents)
            return "" if interrupted else "training has not gone on"
        lacking = [name for name in NECESSARY if name not in incident.seconds]
        return f"its incident lacks the seconds of {', '.join(lacking)}" if lacking else ""
