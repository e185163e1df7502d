"""The check of GPU machines: its verdicts, its times, what it writes, and a dry run on a CPU."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from convnextv2.kernels.gpu import triton_missing
from pipelines.doctor.gpu import __main__ as check
from pipelines.doctor.gpu import parts
from pipelines.doctor.gpu.parts import (
    Outcome,
    Part,
    Row,
    Setting,
    Skipped,
    run_part,
)
from pipelines.doctor.gpu.speed import compiled, steps
from pipelines.doctor.gpu.speed.compilation import compilation
from pipelines.doctor.gpu.speed.roofline import Chip, images_per_second
from pipelines.doctor.gpu.speed.steps import Measured
from pipelines.doctor.gpu.table import render
from tests.cluster.fake_gpu import visible_gpu
from tests.pipelines.doctor.gpu.made_up_parts import (
    BAD,
    GOOD,
    bad,
    calibrating,
    crashing,
    good,
    hanging,
    lacking,
    raising,
    starting_another,
    telling,
    useless,
    wrong_then_hanging,
)

SETTING = Setting(device="cpu", quick=True)
H100 = Chip(bandwidth=3.0e12, matrix_rate=8e14, lanes=132 * 128 * 1.755e9)
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def _light_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PRELOADED", ["tests.pipelines.doctor.gpu.made_up_parts"])


@pytest.mark.parametrize(
    ("rows", "verdict", "found", "reason"),
    [
        (good, "ok", [GOOD], ""),
        (bad, "fail", [GOOD, BAD], ""),
        (raising, "fail", [GOOD], "ValueError: no such kernel"),
        (crashing, "fail", [GOOD], "its process ended with code 7"),
        (lacking, "skipped", [], "needs triton: pip install triton"),
        (useless, "unusable", [], "no GPU"),
    ],
)
def test_a_part_keeps_its_rows_whatever_becomes_of_it(
    rows: Callable[[Setting], Iterator[Row]], verdict: str, found: list[Row], reason: str
) -> None:
    told: list[Row] = []
    outcome = run_part(Part("part", 1, rows), SETTING, PATIENCE, told.append)
    assert (outcome.verdict, outcome.rows, outcome.reason) == (verdict, found, reason)
    assert told == found


def test_a_part_that_hangs_is_cut_keeps_its_rows_and_ends_with_what_it_has_started() -> None:
    def run_it(rows: Callable[[Setting], Iterator[Row]]) -> Outcome:
        return run_part(Part("part", 1, rows), SETTING, 8.0)

    # Side by side, for each takes all of its time.
    with ThreadPoolExecutor() as pool:
        cut, wrong, other = pool.map(run_it, (hanging, wrong_then_hanging, starting_another))
    assert {each.reason for each in (cut, wrong, other)} == {"its 8 s were over"}
    assert (cut.verdict, cut.rows) == ("cut", [GOOD])
    assert (wrong.verdict, wrong.rows) == ("fail", [BAD])
    assert ended(int(float(other.rows[0].figures["pid"])))


def ended(pid: int) -> bool:
    """Whether the process ends; nobody may be there to collect it."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        deadline = time.monotonic() + PATIENCE
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_parts_fail_alone_and_each_row_is_kept_as_it_comes() -> None:
    kept: list[dict[str, Outcome]] = []
    planned = [Part("broken", PATIENCE, crashing), Part("sound", PATIENCE, bad)]
    outcomes = check.run_all(planned, SETTING, 2 * PATIENCE, lambda found: kept.append({**found}))
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {
        "broken": "fail",
        "sound": "fail",
    }
    # After every row and every part; a part that is still running counts as cut.
    verdicts = [[outcome.verdict for outcome in found.values()] for found in kept]
    assert verdicts == [["cut"], ["fail"], ["fail", "cut"], ["fail", "cut"], ["fail", "fail"]]


def test_what_has_no_time_left_is_not_begun_and_an_unusable_machine_ends_it() -> None:
    outcomes = check.run_all([Part("late", PATIENCE, good)], SETTING, 1.0, lambda found: None)
    assert outcomes == {"late": Outcome("cut", 0.0, [], "its share of the 1 s is under 2 s")}
    planned = [Part("machine", PATIENCE, useless), Part("other", PATIENCE, good)]
    assert list(check.run_all(planned, SETTING, PATIENCE, lambda found: None)) == ["machine"]


def test_later_parts_know_what_the_calibration_measured() -> None:
    planned = [Part("calibration", PATIENCE, calibrating), Part("speed", PATIENCE, telling)]
    outcomes = check.run_all(planned, SETTING, 2 * PATIENCE, lambda found: None)
    assert outcomes["speed"].rows == [Row("told", {"copy TB/s": 3.0})]


def test_table_shows_every_row_and_a_verdict_per_part(tmp_path: Path) -> None:
    outcomes = {
        "kernels": Outcome("fail", 1.5, [GOOD, BAD]),
        "zero": Outcome("skipped", 0.1, [], "needs deepspeed: pip install deepspeed"),
    }
    text = render(outcomes)
    assert "bad" in text
    assert "WRONG: above the bar" in text
    verdicts = [" ".join(line.split()) for line in text.splitlines()[-2:]]
    assert verdicts == [
        "kernels fail 1.5 s 1 of 2 rows, such as bad: above the bar",
        "zero skipped 0.1 s needs deepspeed: pip install deepspeed",
    ]
    check.write(tmp_path / "gpu.json", SETTING, outcomes)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["parts"]["kernels"]["rows"][1] == {
        "case": "bad",
        "figures": {"error": 1.0},
        "problem": "above the bar",
    }
    assert os.listdir(tmp_path) == ["gpu.json"]


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (3.0, "not even 8 images fit; by the formula 16 would with checkpoint_stages=(0, 1, 2, 3)"),
        (0.1, "not even 8 images fit; nor would one with checkpoint_stages=(0, 1, 2, 3): take a "
         "smaller model"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_fit_is_told_what_would(
    free: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible_gpu(monkeypatch, free=free)
    monkeypatch.setattr(steps, "seconds_of_step", lambda what, batch, setting: None)
    huge = steps.fcmae("huge", "gather", 224, Setting())
    assert list(steps.measured(huge, Setting())) == [Row("FCMAE huge gather", {}, said)]


def test_a_missing_triton_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_missing() == ""
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_missing().startswith("Triton cannot be imported (")
    with pytest.raises(Skipped, match="pip install triton"):
        list(compilation(Setting()))


@pytest.mark.parametrize(
    ("rates", "use", "problems"),
    [
        ({"ours": 5, "ours compiled": 9, "timm": 4, "timm compiled": 8}, "true", ["", ""]),
        ({"ours": 9, "ours compiled": 5, "timm": 4, "timm compiled": 8}, "false", ["", ""]),
        (
            {"ours": 5, "ours compiled": 6, "timm": 4, "timm compiled": 9},
            "true",
            ["", "timm's compiled model is 1.50 times as fast"],
        ),
        ({"ours": 5, "ours compiled": 9}, "true", ["", ""]),  # timm is not installed
    ],
)
def test_the_faster_way_to_fine_tune_is_named(
    rates: dict[str, float], use: str, problems: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []

    def measure(what: Measured, setting: Setting) -> Iterator[Row]:
        run.append(what.name)
        rate = rates.get(what.name.removeprefix("dense atto "))
        if rate is not None:
            yield Row(what.name, {"images/s": rate})

    monkeypatch.setattr(compiled, "measured", measure)
    rows = list(compiled.compiled_speed(Setting(sizes=("atto",))))
    assert run[:4] == [f"dense atto {name}" for name in
                       ("ours", "ours compiled", "timm", "timm compiled")]  # fmt: skip
    settings = [row for row in rows if row.case == "dense atto setting"]
    assert [row.figures["use"] for row in settings] == [f"finetune.compile={use}"] * 2
    assert [row.problem for row in settings] == problems


@pytest.mark.parametrize(
    ("size", "batch", "pretraining", "dense"),
    # By another program, with the optimizer's 66 bytes a parameter and 512 images.
    [("atto", 512, 49_532, 23_130), ("base", 256, 6_978, 2_818), ("large", 256, 4_096, 1_646)],
)
def test_roofline(size: str, batch: int, pretraining: float, dense: float) -> None:
    for expected, is_dense in ((pretraining, False), (dense, True)):
        found = images_per_second(size, H100, batch, dense=is_dense)
        assert expected < found < 1.04 * expected


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.doctor.gpu", *words]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_dry_run_on_a_cpu_passes_every_part(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--quick", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    verdicts = {name: part["verdict"] for name, part in found.items()}
    assert list(verdicts) == [part.name for part in check.PARTS]
    skipped = {name for name, verdict in verdicts.items() if verdict == "skipped"}
    # They are about a device beside the host.
    assert skipped == {"compilation", "syncs", "loader", "graph", "compiled"}
    assert set(verdicts.values()) == {"ok", "skipped"}
