"""A whole trial: both runs, the checks, and the result as plain data."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import JsonValue

from cluster.laboratory.network import Network
from cluster.laboratory.nodes import Laboratory, laboratory
from convnextv2.durable import write_json
from pipelines.config import PipelineConfig
from pipelines.faults.checks import Check, all_checks
from pipelines.faults.disturb import Runner
from pipelines.faults.outcome import Outcome, outcomes
from pipelines.faults.plan import FaultPlan
from pipelines.faults.schedule import schedule
from pipelines.faults.tiny import make_images
from pipelines.runtime.goodput import Account, accounts_of, total

RESULT = "result.json"


@dataclass(frozen=True)
class Trial:
    """What came of a plan."""

    folder: Path
    outcomes: list[Outcome]
    checks: list[Check]
    account: Account

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def as_json(self) -> dict[str, JsonValue]:
        return {
            "folder": str(self.folder),
            "passed": self.passed,
            "faults": [_outcome_as_json(each) for each in self.outcomes],
            "checks": [
                {"name": each.name, "passed": each.passed, "words": each.words}
                for each in self.checks
            ],
            "goodput": self.account.goodput,
            "wall": self.account.wall,
            "seconds": dict(self.account.seconds),
        }


def try_out(
    plan: FaultPlan,
    config: PipelineConfig,
    folder: Path,
    baseline: Path | None,
    say: Callable[[str], None],
) -> Trial:
    """Run a plan in a new folder; `baseline` is an undisturbed run of the same settings.

    Raises:
        UndisturbedFailed: When the run fails without any fault.
    """
    marks = folder / "fired"
    marks.mkdir(parents=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False))
    if config.data.source is None:
        source = make_images(folder / "images")
        data = config.data.model_copy(update={"source": source})
        config = config.model_copy(update={"data": data})
    workers = config.cluster.sizes_for(config.recipes()[plan.run.section])[0]
    faults = schedule(plan, workers, marks)
    # The undisturbed run leaves out the steps around a spike from its start, so it must know them.
    spikes = any(fault.what == "spike" for fault in faults)
    with _nodes(plan, say) as nodes:
        runner = Runner(plan, config, folder, nodes, say)
        if baseline is None and not spikes:
            baseline = runner.undisturbed(faults)
        disturbed = runner.disturbed(faults)
        if baseline is None:
            baseline = runner.undisturbed(faults)
    run_dir = folder / "disturbed"
    found, unexplained = outcomes(faults, disturbed, run_dir)
    trial = Trial(
        folder,
        found,
        all_checks(found, unexplained, disturbed, run_dir, baseline, plan.tolerance),
        total(accounts_of(run_dir)),
    )
    write_json(folder / RESULT, trial.as_json())
    return trial


@contextlib.contextmanager
def _nodes(plan: FaultPlan, say: Callable[[str], None]) -> Iterator[Laboratory | None]:
    local = plan.cluster.local
    if local is None:
        yield None
        return
    say(f"starting {local.nodes} nodes on this machine")
    with laboratory(Network() if plan.needs_network else None) as nodes:
        nodes.have(local.nodes)
        yield nodes


def _outcome_as_json(outcome: Outcome) -> dict[str, JsonValue]:
    fault, fired, incident = outcome.fault, outcome.fired, outcome.incident
    return {
        "number": fault.number,
        "what": fault.what,
        "when": str(fault.when),
        "where": fault.place,
        "fired": None if fired is None else {"time": fired.time, "step": fired.step},
        "followed": outcome.followed,
        "problem": outcome.problem,
        "incident": None
        if incident is None
        else {
            "cause": incident.cause,
            "rank": incident.rank,
            "host": incident.host,
            "downtime": incident.downtime,
            "seconds": dict(incident.seconds),
            "lost_steps": incident.lost_steps,
            "recovered": incident.recovered,
        },
    }
