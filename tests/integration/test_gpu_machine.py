"""A GPU that cannot train what it is asked to: one sentence from the command, at once."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Start

ROOT = Path(__file__).parents[2]
MACHINE = Path(__file__).parent / "gpu_machine"
SETTINGS = ("cluster.num_workers=1", "cluster.use_gpu=true", "cluster.warm_spare=false")
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU."
OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update it."


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both runs, so that the second one finds its images written."""
    return tmp_path_factory.mktemp("gpu") / "run"


def be(machine: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes started from now on are on this machine."""
    monkeypatch.setenv("PYTHONPATH", f"{MACHINE}:{ROOT}")
    monkeypatch.setenv("GPU_MACHINE", json.dumps(machine))


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
    be(machine, monkeypatch)
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    (run_dir / "incidents.jsonl").unlink(missing_ok=True)
    job = start("pretrain", run_dir, settings=SETTINGS)
    out, error = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert re.fullmatch(rf"error: worker 0 on [^ ]+: {said}", error.splitlines()[-1]), error
    assert "Traceback" not in out + error
    assert len((run_dir / "incidents.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"init": NONE}, "no GPU can be used: Found no NVIDIA driver on your system"),
        (
            {"capability": (7, 0)},
            "Tesla Made-up has compute capability 7.0; bf16 training and the kernels need 8.0 "
            "(A100) or newer",
        ),
    ],
)
def test_the_doctor_says_so_too(
    machine: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    be(machine, monkeypatch)
    command = [sys.executable, "-m", "pipelines.cli", "doctor", "--gpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{said}; --device cpu --quick makes a dry run\n"
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_gpu_that_others_use_and_a_missing_triton_are_rows_of_the_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    be({"free": 40.0, "missing": ["triton"]}, monkeypatch)
    command = [sys.executable, "-m", "pipelines.doctor.gpu", "--parts", "machine", "compilation"]
    command += ["--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        "WRONG: other processes use about 38 of its 79 GiB (nvidia-smi lists them)" in done.stdout
    )
    assert re.search(r"compilation +skipped .* Triton cannot be imported", done.stdout)
    assert "Traceback" not in done.stdout + done.stderr
