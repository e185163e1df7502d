"""What tests of the walk over stages share."""

from pathlib import Path

import pytest

from tests.pipelines.graph.kitchen import Kitchen


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)
