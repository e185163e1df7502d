"""Code that crashes, hangs or prints costs one answer, and no more."""

import os

import psutil
import pytest

from pipelines.doctor.interpreter import Interpreter
from pipelines.doctor.processes import run


def test_a_process_that_hangs_is_ended() -> None:
    assert run("sleep", "600", timeout=0.1) == (1, "no answer within 0.1 s")


def test_libraries_are_imported_in_one_process(interpreter: Interpreter) -> None:
    code, first = interpreter.run("import os; print('noise'); print(os.getpid())")
    assert (code, interpreter.run("import os; print(os.getpid())")) == (0, (0, first))
    assert int(first) != os.getpid()
    assert interpreter.run("raise ValueError('bad')") == (1, "ValueError: bad")
    assert interpreter.run("import sys; sys.exit('no licence')") == (1, "SystemExit: no licence")


def test_what_a_library_prints_is_no_answer(interpreter: Interpreter) -> None:
    assert interpreter.run("import os; os.write(1, b'from C'); print(6)") == (0, "6")
    assert interpreter.run("print(7)") == (0, "7")


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import os; os.abort()", (-6, "exit code -6")),
        ("import os; os.write(2, b'no AVX'); os._exit(3)", (3, "no AVX")),
        ("import time; time.sleep(600)", (1, "no answer within 0.5 s")),
    ],
)
def test_after_a_crash_the_others_are_looked_at(
    code: str, answer: tuple[int, str], interpreter: Interpreter
) -> None:
    _, before = interpreter.run("import os; print(os.getpid())")
    assert interpreter.run(code, timeout=0.5 if "sleep" in code else 60) == answer
    code_after, after = interpreter.run("import os; print(os.getpid())")
    assert (code_after, after == before) == (0, False)
    assert not psutil.pid_exists(int(before))
