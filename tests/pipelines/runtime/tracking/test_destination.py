"""Where runs are tracked: what is configured, what the environment says, and the run folder."""

from pathlib import Path

import pytest

from pipelines.config import TrackingConfig
from pipelines.runtime.tracking import Destination, open_hint

SERVER = "http://mlflow:5000"
CONFIGURED = {"uri": "http://configured", "experiment": "configured"}


@pytest.mark.parametrize(
    ("configured", "environment", "expected"),
    [
        (CONFIGURED, {}, ("http://configured", "configured", None)),
        (
            CONFIGURED,
            {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_NAME": "pets"},
            ("http://configured", "configured", None),
        ),
        ({}, {"MLFLOW_TRACKING_URI": SERVER}, (SERVER, "convnextv2", None)),
        (
            {},
            {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_NAME": "pets"},
            (SERVER, "pets", None),
        ),
        (
            {},
            {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_ID": "7"},
            (SERVER, "convnextv2", "7"),
        ),
        (
            {},
            {
                "MLFLOW_TRACKING_URI": SERVER,
                "MLFLOW_EXPERIMENT_NAME": "pets",
                "MLFLOW_EXPERIMENT_ID": "7",
            },
            (SERVER, "pets", None),
        ),
        (
            {"experiment": "configured"},
            {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_EXPERIMENT_ID": "7"},
            (SERVER, "configured", None),
        ),
        ({}, {"MLFLOW_TRACKING_URI": ""}, ("sqlite:///{folder}/mlflow.db", "convnextv2", None)),
        # Ids are a store's own: those of a server mean nothing in the run folder.
        (
            {},
            {"MLFLOW_EXPERIMENT_NAME": "pets", "MLFLOW_EXPERIMENT_ID": "7"},
            ("sqlite:///{folder}/mlflow.db", "pets", None),
        ),
        (
            {},
            {"MLFLOW_EXPERIMENT_ID": "7"},
            ("sqlite:///{folder}/mlflow.db", "convnextv2", None),
        ),
    ],
)
def test_the_configuration_goes_before_the_environment(
    configured: dict[str, str],
    environment: dict[str, str],
    expected: tuple[str, str, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = Destination.of(TrackingConfig(**configured), tmp_path)
    uri, *rest = expected
    assert [found.uri, found.experiment, found.experiment_id] == [
        uri.format(folder=tmp_path),
        *rest,
    ]
    assert found.own == ("mlflow.db" in uri)
    assert found.artifacts == (tmp_path / "mlartifacts" if found.own else None)


def test_artifacts_lie_beside_a_database_of_ones_own(tmp_path: Path) -> None:
    found = Destination(uri=f"sqlite:///{tmp_path}/all.db")
    assert found.artifacts == tmp_path / "mlartifacts"
    assert not found.own


def test_how_to_open_it() -> None:
    assert open_hint(SERVER) == SERVER
    assert open_hint("sqlite:////r/mlflow.db").endswith(
        "--backend-store-uri sqlite:////r/mlflow.db"
    )
