"""Fault plans: YAML files that say which run to disturb, where, and how."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator

from pipelines.config import PipelineConfig
from pipelines.config.hints import nearest
from pipelines.config.resolve import resolve_file
from pipelines.config.section import Positive, Section
from pipelines.faults.kinds import KINDS
from pipelines.faults.tiny import tiny
from pipelines.presets import load_preset

PHASES = ("step", "evaluate", "compare", "checkpoint", "start-up")
_WHEN = re.compile(r"(?P<phase>[a-z-]+) (?P<step>\d+)")
_WHERE = re.compile(r"random|rank (?P<rank>\d+)|(?P<node>node-\d+)")


@dataclass(frozen=True)
class Moment:
    """The first `phase` of the loop after at least `step` steps; "step 12" in a plan."""

    phase: str
    step: int

    @classmethod
    def parse(cls, text: object) -> "Moment":
        found = _WHEN.fullmatch(str(text))
        if found is None or found["phase"] not in PHASES:
            phases = ", ".join(f"{phase} N" for phase in PHASES)
            raise ValueError(f"expected one of {phases}: the first one after N steps")
        return cls(found["phase"], int(found["step"]))

    def __str__(self) -> str:
        return f"{self.phase} {self.step}"


@dataclass(frozen=True)
class Place:
    """A worker by its rank, or a node by its name; neither is drawn from the plan's seed."""

    rank: int | None = None
    node: str | None = None

    @classmethod
    def parse(cls, text: object) -> "Place":
        found = _WHERE.fullmatch(str(text))
        if found is None:
            raise ValueError("expected rank N, a node such as node-2, or random")
        return cls(None if found["rank"] is None else int(found["rank"]), found["node"])

    def __str__(self) -> str:
        return self.node or ("random" if self.rank is None else f"rank {self.rank}")


def _known_kind(name: object) -> str:
    if name not in KINDS:
        listed = ", ".join(KINDS)
        raise ValueError(f"no such kind; {nearest(str(name), [*KINDS], f'there are {listed}')}")
    return str(name)


KindName = Annotated[str, PlainValidator(_known_kind)]


class PlannedFault(Section):
    """One fault."""

    when: Annotated[Moment, PlainValidator(Moment.parse), PlainSerializer(str)]
    what: KindName
    where: Annotated[Place, PlainValidator(Place.parse), PlainSerializer(str)] = Place()


class RandomFaults(Section):
    """Faults drawn from the seed: kind and rank; they come at fixed distances."""

    count: Positive
    every_steps: Positive
    kinds: Annotated[tuple[KindName, ...], Field(min_length=1)]


class DisturbedRun(Section):
    """The run to disturb: a preset, or a file with settings, or by default a tiny model on images
    that the command makes.
    """

    preset: str | None = None
    config: Path | None = None
    set: tuple[str, ...] = ()
    """Changes of settings, like --set."""
    stage: Literal["pretrain", "intermediate", "finetune", "linear-probe"] = "pretrain"
    """It runs up to this stage."""

    @property
    def section(self) -> str:
        """The section of the configuration that is the stage's recipe."""
        return self.stage.replace("-", "_")

    def configuration(self) -> PipelineConfig:
        """The checked configuration.

        Raises:
            ConfigError: Naming every problem at once.
        """
        if self.config is not None:
            return resolve_file(self.config, self.set)
        return load_preset(self.preset, self.set) if self.preset else tiny(self.set)


class LocalNodes(Section):
    """A Ray cluster of several nodes on this machine, one worker each."""

    nodes: Positive
    replace: bool = True
    """Nodes that are lost, or have failed three times, are replaced, as an autoscaler does."""


class ClusterOfPlan(Section):
    """Where the run is: on nodes of its own on this machine, or on a running Ray cluster."""

    local: LocalNodes | None = None
    address: str | None = None


class FaultPlan(Section):
    """A whole plan."""

    seed: Annotated[int, Field(ge=0)] = 0
    run: DisturbedRun = DisturbedRun()
    cluster: ClusterOfPlan = ClusterOfPlan(local=LocalNodes(nodes=3))
    faults: tuple[PlannedFault, ...] = ()
    random: RandomFaults | None = None
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    """Of the weights, relative to the largest of their tensor, where the number of workers has
    changed during the run; otherwise they must be equal bit by bit."""
    minutes: Annotated[float, Field(gt=0)] = 60.0
    """A run that takes longer is ended, and has failed."""

    def kinds(self) -> list[tuple[str, str]]:
        """The place in the plan and the name of every kind that it may use."""
        found = [(f"faults.{number}.what", fault.what) for number, fault in enumerate(self.faults)]
        drawn = () if self.random is None else self.random.kinds
        return found + [(f"random.kinds.{number}", name) for number, name in enumerate(drawn)]

    @property
    def needs_network(self) -> bool:
        """Whether its faults cut or slow down the links of nodes."""
        return any(KINDS[name].link is not None for _, name in self.kinds())
