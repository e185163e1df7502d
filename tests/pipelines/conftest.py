"""What tests of the command line share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.runtime.tracking import tracker
from tests.pipelines.commands.user import take_photos


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """`main` takes over SIGTERM; give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_own_store(monkeypatch)


def keep_own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are tracked in their own folders, wherever the environment would have them."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    # MLflow's first start on a busy machine may take longer than a driver would wait.
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 300.0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return take_photos(tmp_path_factory.mktemp("photos"))
