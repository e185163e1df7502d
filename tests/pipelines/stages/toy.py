"""A stage as somebody would add it: its section, its code, and its record."""

from convnextv2.data.shards.manifest import read_manifest
from convnextv2.durable import write_json
from pipelines.config import PipelineConfig, Section
from pipelines.graph import Outputs, Stage, StageContext, hash_files
from pipelines.graph.kinds import StageKind
from pipelines.stages import StageSetup

RESULT = "balance.json"


class BalanceConfig(Section):
    """How evenly the classes are filled."""

    decimals: int = 3


class ConfigWithBalance(PipelineConfig):
    """A pipeline that may have the stage."""

    balance: BalanceConfig | None = None


def build(setup: StageSetup) -> Stage:
    """Divide the images of the smallest class by those of the largest."""
    settings = setup.section(BalanceConfig)

    def run(context: StageContext) -> Outputs:
        counts = read_manifest(context.inputs[setup.kind.images] / "train").class_counts
        balance = round(min(counts) / max(counts), settings.decimals)
        write_json(context.directory / RESULT, {"balance": balance})
        return hash_files(context.directory, RESULT)

    return Stage(
        name=setup.kind.name,
        run=run,
        settings={setup.kind.section: settings.model_dump()},
        depends_on=setup.depends_on,
    )


BALANCE = StageKind(
    name="balance",
    title="Balance of the classes",
    build="tests.pipelines.stages.toy:build",
    section="balance",
    images="write",
    needs_labels=("train",),
    help="say how evenly the classes are filled",
)
