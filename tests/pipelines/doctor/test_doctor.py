"""The report: its order, every word of it, and nothing quick waits for what is slow."""

import io
import itertools
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from pipelines.doctor import folder, libraries, machine
from pipelines.doctor.check import Check, in_words
from pipelines.doctor.diagnose import diagnose
from pipelines.doctor.interpreter import Interpreter
from tests.pipelines.doctor.conftest import Patch


def test_the_report_keeps_the_order_and_every_word(tmp_path: Path, monkeypatch: Patch) -> None:
    advice = "reinstall [b]it[/b]: " + "x" * 100
    last = Check("last", "fail", "[12]", advice)
    monkeypatch.setattr(libraries, "CHECKS", [lambda interpreter: last])
    checks = list(diagnose(tmp_path))
    assert [check.name for check in checks][:2] == ["cores", "memory"]
    assert [check.name for check in checks][-2:] == ["database", "last"]
    assert json.loads(json.dumps([asdict(check) for check in checks]))[-1]["advice"] == advice

    console = Console(record=True, width=80, file=io.StringIO(), soft_wrap=True, highlight=False)
    console.print(in_words(last))
    assert console.export_text() == f"fail  last            [12]\n      {advice}\n"


def test_what_is_known_is_said_while_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def not_yet(_: Interpreter) -> Check:
        raise AssertionError("the quick checks wait for the slow ones")

    monkeypatch.setattr(libraries, "CHECKS", [not_yet])
    quick = itertools.islice(diagnose(tmp_path), len(machine.CHECKS) + len(folder.CHECKS))
    assert [check.name for check in quick][-1] == "database"
