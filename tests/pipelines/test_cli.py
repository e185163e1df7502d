"""The command line: what a command asks of the pipeline, and how it ends.

Bad input is in tests/integration/test_bad_input.py, help and manual in commands/test_manual.py.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipelines import cli
from pipelines.doctor import diagnose
from pipelines.doctor.check import Check, Status
from pipelines.graph.kinds import stage_commands

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """`main` takes over SIGTERM; give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("words", [[], ["data"], ["dmeo"], ["demo", "--sets", "a=1"]])
def test_words_that_are_no_command_show_the_usage(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert "usage: convnextv2" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "imagnet1k"], ["report", "--preset", "imagnet1k"]])
def test_an_unknown_preset(words: list[str], capsys: Capture) -> None:
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert err == (
        "error: 1 problem in the settings\n"
        "  unknown preset 'imagnet1k'; did you mean 'imagenet1k'?\n"
    )
    assert out == ""


def without_a_reader(words: list[str], **environment: str) -> tuple[int, str]:
    """Exit code of a command whose standard output nobody reads, and what it says of that."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
        check=False,
    )
    os.close(writer)
    return ended.returncode, ended.stderr


# Unbuffered, the command itself meets the closed pipe; else the last flush does.
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["presets", "--json"], ["presets", "demo"], ["data", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(words: list[str], unbuffered: str) -> None:
    code, said = without_a_reader(words, PYTHONUNBUFFERED=unbuffered)
    assert said == ""
    assert code == 1 or "--help" in words, "only argparse takes no notice"


def test_errors_are_said_all_the_same_when_nobody_reads_the_output() -> None:
    code, said = without_a_reader(["run", "imagnet1k"])
    assert (code, said[:22]) == (1, "error: 1 problem in th")


def test_another_broken_pipe_is_an_error(monkeypatch: Patch, capfd: Capture) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise BrokenPipeError("the connection to the cluster")

    monkeypatch.setattr(cli, "_act_doctor", fail)
    assert cli.main(["doctor"]) == 1
    assert capfd.readouterr().err == "error: the connection to the cluster\n"


@pytest.fixture
def asked(monkeypatch: Patch) -> list[object]:
    """What commands ask of the pipeline, which does nothing."""
    from pipelines.commands import run

    requests: list[object] = []

    def take(request: run.Request) -> run.Outcome:
        requests.append(request)
        return run.Outcome(request.run_dir, "sqlite:///x.db", Path("driver.log"))

    monkeypatch.setattr(run, "run_pipeline", take)
    return requests


@pytest.mark.parametrize(
    ("words", "until"),
    [
        ("demo", []),
        ("run demo", []),
        ("pretrain --preset demo", ["pretrain"]),
        ("finetune --preset demo", ["finetune", "finetune-scratch"]),
        ("evaluate --preset demo", ["evaluate", "evaluate-scratch"]),
        ("evaluate --preset demo --set finetune.scratch_baseline=false", ["evaluate"]),
        ("knn --preset knn-atto", ["knn"]),
        ("linear-probe --preset linear-probe-atto", ["linear-probe", "evaluate-linear-probe"]),
        ("evaluate --preset linear-probe-atto", ["evaluate-linear-probe"]),
        ("intermediate --preset imagenet22k-nano", ["intermediate"]),
        ("finetune --preset imagenet22k-nano", ["finetune"]),
        ("report --preset demo", ["report"]),
    ],
)
def test_a_command_goes_as_far_as_its_stage(
    words: str, until: list[str], asked: list[object]
) -> None:
    from pipelines.commands.run import Request

    assert cli.main(words.split()) == 0
    (request,) = asked
    assert isinstance(request, Request)
    assert list(request.until) == until
    assert request.render_only == words.startswith("report")
    assert request.run_dir == Path("runs") / request.config.name
    assert request.fetch_fashion_mnist == (request.config.name == "demo")


@pytest.mark.parametrize("command", [*(kind.name for kind in stage_commands()), "run"])
def test_a_recipe_must_be_named(command: str, asked: list[object], capsys: Capture) -> None:
    assert cli.main([command, "--data", "/imagenet"]) == 1
    first, *sizes, last = capsys.readouterr().err.splitlines()
    name = "NAME" if command == "run" else "--preset NAME"
    assert first == (
        f"error: {command}: no recipe was chosen. Give {name} or --config FILE; "
        "for example, by size"
    )
    assert last == "convnextv2 presets lists and describes them all"
    assert asked == []
    # What is named has the stage.
    for line in sizes:
        preset = line.split()[-1]
        assert cli.main([command, *["--preset"][: command != "run"], preset]) == 0
        assert len(line) <= 80
    assert len(asked) == len(sizes) >= 5


def test_a_file_is_a_recipe(tmp_path: Path, asked: list[object], capsys: Capture) -> None:
    from pipelines.commands.run import Request
    from pipelines.presets import load_preset

    assert cli.main(["presets", "imagenet1k-tiny"]) == 0
    mine = tmp_path / "my.yaml"
    mine.write_text(capsys.readouterr().out)
    for command in ("run", "pretrain", "report"):
        words = [command, "--config", str(mine), "--set", "seed=3", "--data", "photos"]
        assert cli.main(words) == 0
        request = asked[-1]
        assert isinstance(request, Request)
        assert request.config == load_preset("imagenet1k-tiny", ["seed=3", "data.source=photos"])
        assert request.whole_command == (
            f"convnextv2 run --config {mine} --data photos --set seed=3"
        )
    capsys.readouterr()
    mine.write_text(mine.read_text().replace("val_fraction:", "hold_out:"))
    assert cli.main(["run", "--config", str(mine)]) == 1
    assert capsys.readouterr().err == (
        f"error: 1 problem in {mine}\n"
        "  unknown key 'data.hold_out'; it is called data.val_fraction now\n"
    )


def test_the_file_of_a_run_folder_is_offered(tmp_path: Path, capsys: Capture) -> None:
    words = ["report", "--run-dir", str(tmp_path)]
    assert cli.main(words) == 1
    assert "--config FILE;" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert cli.main(words) == 1
    assert f"--config {tmp_path}/config.yaml;" in capsys.readouterr().err


def test_a_report_of_no_folder_makes_none(tmp_path: Path, capsys: Capture) -> None:
    mistyped = tmp_path / "mistyped"
    assert cli.main(["report", "--preset", "demo", "--run-dir", str(mistyped)]) == 1
    assert f"--run-dir {mistyped}: there is no such folder" in capsys.readouterr().err
    assert not mistyped.exists()


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        ("data check shards", "check", "verify"),
        ("data write a b --hold-out 0.1", "--hold-out", "--val-fraction"),
        ("data info a --limit 5", "--limit", "--max-images"),
        ("checkpoint export step-1 --output x", "export", "consolidate"),
        ("checkpoint consolidate step-1 --output x --average", "--average", "--ema"),
    ],
)
def test_an_old_word_is_told_the_new_one(words: str, old: str, new: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"; {old} is called {new} now\n")


def test_a_stage_the_preset_has_not(asked: list[object], capsys: Capture) -> None:
    assert cli.main(["knn", "--preset", "demo"]) == 1
    assert capsys.readouterr().err == (
        "error: demo has no stage 'knn'; it has pretrain, finetune, evaluate and report "
        "(convnextv2 presets lists recipes that may have it)\n"
    )
    assert asked == []


def test_options_reach_the_pipeline(asked: list[object], capsys: Capture) -> None:
    from pipelines.commands.run import Request

    # Folders whose names YAML would take for a number, a comment or a truth value.
    for folder in ("2024", "my #1: photos", "no", "1e5"):
        words = ["run", "imagenet1k", "--data", folder, "--run-dir", "out", "--rerun", "finetune"]
        words += ["--cache", folder]
        assert cli.main([*words, "--set", "seed=3", "--json"]) == 0
        request = asked[-1]
        assert isinstance(request, Request)
        assert (request.config.data.source, request.config.data.cache) == (Path(folder),) * 2
        assert (request.config.name, request.config.seed) == ("imagenet1k-atto", 3)
        assert (request.run_dir, request.rerun) == (Path("out"), "finetune")
        assert not request.fetch_fashion_mnist
        assert request.command == ["convnextv2", *words, "--set", "seed=3", "--json"]
        printed = json.loads(capsys.readouterr().out)
        assert printed["run_dir"] == "out"


@pytest.mark.parametrize("error", [OSError("disk on fire"), ValueError("odd"), RuntimeError("no")])
def test_errors_of_ours_are_one_message(
    error: Exception, monkeypatch: Patch, capsys: Capture
) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_act_doctor", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_is_not_dressed_up(monkeypatch: Patch) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_act_doctor", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


GOES_ON = "stopped; the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize(
    ("number", "command", "act", "words"),
    [
        (signal.SIGTERM, "demo", "_act_pipeline", GOES_ON),
        (signal.SIGINT, "evaluate", "_act_pipeline", GOES_ON),
        # Nothing to go on from.
        (signal.SIGINT, "report", "_act_pipeline", "stopped\n"),
        (signal.SIGINT, "doctor", "_act_doctor", "stopped\n"),
    ],
)
def test_a_signal_is_an_orderly_way_out(number: int, command: str, act: str, words: str) -> None:
    code = (
        "import sys, time\n"
        "from pipelines import cli\n"
        "def act(options):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
        f"cli.{act} = act\n"
        f"sys.exit(cli.main(['{command}']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "cleaned up\n"
    assert err == words


@pytest.mark.parametrize(("worst", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_when_a_check_does(
    worst: Status, code: int, monkeypatch: Patch, capsys: Capture
) -> None:
    checks = [Check("cores", "ok", "2"), Check("disk", worst, "1 GB free", "free some")]
    monkeypatch.setattr(diagnose, "diagnose", lambda run_dir: checks)
    assert cli.main(["doctor", "--json"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert [check["status"] for check in printed] == ["ok", worst]
    assert cli.main(["doctor"]) == code
    assert "free some" in capsys.readouterr().out


@pytest.mark.slow
def test_rerun_of_an_unknown_stage_names_those_there_are(tmp_path: Path, capsys: Capture) -> None:
    for label in ("cat", "dog"):
        for split in ("train", "val"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    words = ["--data", str(tmp_path / "photos"), "--run-dir", str(tmp_path / "run")]
    assert cli.main(["demo", *words, "--rerun", "finetun"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: unknown stage 'finetun'; there are write, pretrain, finetune, finetune-scratch, "
        "evaluate, evaluate-scratch, report\n"
    )
    assert cli.main(["pretrain", "--preset", "demo", *words, "--rerun", "finetune"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: --rerun finetune: this command has no stages but write, pretrain\n"
    )
    assert not (tmp_path / "run" / "stages").exists()
