"""The records of stages: what they name is there."""

import inspect
import pkgutil

import pytest

from pipelines.config import PipelineConfig, TrainConfig
from pipelines.graph.kinds import KINDS, StageKind, title_of, training_sections
from tests.pipelines.stages.test_stages import everything

EVERYTHING = everything()
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@kinds
def test_its_code_is_there(kind: StageKind) -> None:
    build = pkgutil.resolve_name(kind.build)
    assert list(inspect.signature(build).parameters) == ["setup"]


@kinds
def test_it_reads_stages_that_run_before_it(kind: StageKind) -> None:
    names = list(KINDS)
    before = names[: names.index(kind.name)]
    read = (kind.images, *kind.starts_from, kind.evaluates, kind.baseline_of)
    assert {name for name in read if name} <= set(before)


@kinds
def test_its_section_is_one_of_the_configuration(kind: StageKind) -> None:
    section = kind.settings(EVERYTHING)
    assert section is not None
    assert kind.trains == isinstance(section, TrainConfig)
    first = kind.section.split(".")[0]
    assert first in {"", *PipelineConfig.model_fields}


@kinds
def test_it_is_part_of_commands_that_there_are(kind: StageKind) -> None:
    assert all(KINDS[command].help for command in kind.part_of)


def test_recipes_of_the_configuration_are_those_of_the_stages_that_train() -> None:
    assert sorted(training_sections()) == sorted(EVERYTHING.recipes())


def test_what_no_record_knows_has_its_name_for_a_title() -> None:
    assert title_of("pretrain") == "Pretraining"
    assert title_of("stage of another version") == "stage of another version"
