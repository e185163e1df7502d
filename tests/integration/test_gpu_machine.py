"""A GPU that cannot train what it is asked to: one sentence from the command, at once."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.integration.conftest import Start

MACHINE = Path(__file__).parent / "gpu_machine"
SETTINGS = ("cluster.num_workers=1", "cluster.use_gpu=true", "cluster.warm_spare=false")
OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it."


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both runs, so that the second one finds its images written."""
    return tmp_path_factory.mktemp("gpu") / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (
            {"init": OLD},
            r"cluster\.use_gpu is true, but in this worker no GPU can be used: The NVIDIA driver "
            r"on your system is too old \(found version 11040\); update the driver; "
            r"cluster\.use_gpu=false trains on CPUs",
        ),
        (
            {"free": 0.003},
            r"micro_batch_size: 4 images of 16 px take about .* would do; other processes use "
            r"about 78 of its 79 GiB \(nvidia-smi lists them\)",
        ),
    ],
)
def test_it_is_said_once_and_not_tried_again(
    machine: dict[str, object],
    said: str,
    run_dir: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{MACHINE}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("GPU_MACHINE", json.dumps(machine))
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    (run_dir / "incidents.jsonl").unlink(missing_ok=True)
    job = start("pretrain", run_dir, settings=SETTINGS)
    out, error = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert re.fullmatch(rf"error: worker 0 on [^ ]+: {said}", error.splitlines()[-1]), error
    assert "Traceback" not in out + error
    assert len((run_dir / "incidents.jsonl").read_text().splitlines()) == 1
