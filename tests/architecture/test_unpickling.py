"""Nothing runs code that is in a file: every call that could is known, with what makes it safe."""

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.architecture.test_imports import ROOT, SOURCES, modules

PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
READERS = {"load", "loads", "Unpickler", "open", "read_pickle"}
# Of DeepSpeed, timm, Lightning and pandas; archives, whose entries may be named ../../x; YAML that
# may make any object; text that is run.
OTHERS = {
    *("load_checkpoint", "load_from_checkpoint", "read_pickle", "extractall", "unpack_archive"),
    *("full_load", "unsafe_load", "eval", "exec"),
}
# What is allowed, how often, and why: only the user's own processes have written it.
KNOWN = {
    # From the agent that started this process, by its standard input.
    ("cluster/workers/child.py", "pickle.load"): 2,
    ("cluster/workers/child.py", "pickle.loads"): 2,
    # Code of the doctor's own, by the standard input of the process it has started.
    ("pipelines/doctor/interpreter.py", "exec"): 1,
    # The benchmark's baseline reads what it has written itself, as DeepSpeed's users do.
    ("pipelines/bench/faults/ray_train.py", "engine.load_checkpoint"): 1,
}


def calls_in(code: str) -> Iterator[str]:
    """Calls that may run what they read, however the library was imported."""
    tree = ast.parse(code)
    names = dict(imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (found := unsafe(node, names)):
            yield found
        # A program that is kept as text, for another process.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "exec(" in node.value:
            with suppress(SyntaxError):
                yield from calls_in(node.value)


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every imported name, and what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def unsafe(call: ast.Call, names: dict[str, str]) -> str:
    """The call in full if it may run what it reads, "" if it may not."""
    first, _, rest = ast.unparse(call.func).partition(".")
    full = ".".join(filter(None, (names.get(first, first), rest)))
    *owners, name = full.split(".")
    given = {each.arg: ast.unparse(each.value) for each in call.keywords}
    if full in ("torch.load", "torch.jit.load"):
        return "" if given.get("weights_only") == "True" else full
    if name == "load" and owners in (["numpy"], ["numpy", "lib", "npyio"]):
        return full if given.get("allow_pickle", "False") != "False" else ""
    if owners[:1] == ["yaml"] and name in ("load", "load_all"):
        return full
    if name in OTHERS and (name not in ("eval", "exec") or not owners):
        return full
    return full if PICKLES & set(owners) and name in READERS else ""


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("import torch as t\nt.load(f)", ["torch.load"]),
        ("import torch\ntorch.load(f, weights_only=True)", []),
        ("from torch import load\nload(f, weights_only=False)", ["torch.load"]),
        ("import numpy as np\nnp.load(f)", []),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", ["numpy.load"]),
        ("from ray import cloudpickle\ncloudpickle.loads(b)", ["ray.cloudpickle.loads"]),
        ("from pickle import load as read\nread(f)", ["pickle.load"]),
        ("import pickle\npickle.dumps(b)", []),
        ("import pickle\npickle.Unpickler(f)", ["pickle.Unpickler"]),
        ("import yaml\nyaml.load(f, yaml.Loader)", ["yaml.load"]),
        ("import yaml\nyaml.safe_load(f)", []),
        ("engine.load_checkpoint(d)", ["engine.load_checkpoint"]),
        ("tar.extractall(d)", ["tar.extractall"]),
        ("model.eval()", []),
        ("eval(text)", ["eval"]),
        ("CODE = 'exec(line)'", ["exec"]),
    ],
)
def test_calls_are_found_however_they_are_written(code: str, calls: list[str]) -> None:
    assert list(calls_in(code)) == calls


def test_only_what_is_known_may_run_what_it_reads() -> None:
    found = Counter(
        (path.as_posix(), call)
        for room in SOURCES
        for path in modules(room)
        for call in calls_in((ROOT / path).read_text())
    )
    assert found == KNOWN
