"""Reading a fault plan, with everything that is wrong with it."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.config import PipelineConfig
from pipelines.config.file import read_config
from pipelines.config.resolve import ConfigError, refuse
from pipelines.faults.plan import FaultPlan
from pipelines.faults.problems import problems_of_cluster, problems_of_run

SHIPPED = Path(__file__).with_name("plans")


def plan_file(given: Path) -> Path:
    """The file itself, or the shipped plan of that name."""
    shipped = SHIPPED / f"{given}.yaml"
    return (
        shipped if not given.exists() and given.name == str(given) and shipped.exists() else given
    )


def shipped_plans() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_plan(path: Path) -> tuple[FaultPlan, PipelineConfig]:
    """Read a plan, and the configuration of its run; no problem waits until the cluster is there.

    Raises:
        ConfigError: Naming every problem at once.
        ValueError: When the file cannot be read.
    """
    about = f"the fault plan {path}"
    try:
        plan = FaultPlan.model_validate(read_config(path, option="--plan"))
    except ValidationError as error:
        raise ConfigError([_describe(item) for item in error.errors()], about) from None
    try:
        config = plan.run.configuration()
    except ConfigError as error:
        problems = [f"run: {problem}" for problem in error.problems]
        raise ConfigError([*problems, *problems_of_cluster(plan)], about) from None
    refuse([*problems_of_cluster(plan), *problems_of_run(plan, config)], about)
    return plan, config


def _describe(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if item["type"] == "missing":
        return f"{where}: has no default and must be given"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, got {item['input']!r}"
