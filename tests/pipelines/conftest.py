"""What tests of the command line share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.user import take_photos


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """`main` takes over SIGTERM; give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_photos(tmp_path_factory.mktemp("photos"))
