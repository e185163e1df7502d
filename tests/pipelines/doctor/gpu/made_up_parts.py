"""Parts of a check that end in every way; apart, for their processes import this file."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from pipelines.doctor.gpu.parts import Row, Setting, Skipped, Unusable

GOOD, BAD = Row("good", {"error": 1e-9}), Row("bad", {"error": 1.0}, "above the bar")


def good(setting: Setting) -> Iterator[Row]:
    yield GOOD


def bad(setting: Setting) -> Iterator[Row]:
    yield GOOD
    yield BAD


def raising(setting: Setting) -> Iterator[Row]:
    yield GOOD
    raise ValueError("no such kernel")


def crashing(setting: Setting) -> Iterator[Row]:
    yield GOOD
    os._exit(7)


def hanging(setting: Setting) -> Iterator[Row]:
    yield GOOD
    time.sleep(3600)


def wrong_then_hanging(setting: Setting) -> Iterator[Row]:
    yield BAD
    time.sleep(3600)


def starting_another(setting: Setting) -> Iterator[Row]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    yield Row("child", {"pid": float(child.pid)})
    time.sleep(3600)


def lacking(setting: Setting) -> Iterator[Row]:
    raise Skipped("needs triton: pip install triton")
    yield GOOD


def useless(setting: Setting) -> Iterator[Row]:
    raise Unusable("no GPU")
    yield GOOD


def calibrating(setting: Setting) -> Iterator[Row]:
    yield Row("copy", {"TB/s": 3.0, "by": "words"})


def telling(setting: Setting) -> Iterator[Row]:
    yield Row("told", {**setting.rates})
