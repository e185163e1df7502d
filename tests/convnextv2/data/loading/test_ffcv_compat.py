"""What of FFCV's insides is relied on is there, in the version that is installed."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnextv2.data.ffcv_compat import (
    TESTED_VERSION,
    EpochIterator,
    EpochThread,
    Pipeline,
    check_version,
)
from convnextv2.data.loading.views import CenterView, DecodeView

MOVED = f"FFCV's EpochIterator has changed: read it again (ffcv_compat.py is for {TESTED_VERSION})"


def attributes(owner: str, context: type, *methods: Any) -> set[str]:
    """Attributes of what the source calls `owner` that the methods read (Load) or set (Store)."""
    nodes = [
        node
        for method in methods
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method))))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, context)
    ]
    return {node.attr for node in nodes if ast.unparse(node.value) == owner}


def a_pipeline() -> Pipeline:
    decoder = DecodeView(CenterView(size=(8, 8)))
    return Pipeline(
        decoder, [], batch_size=2, batches_ahead=1, num_workers=1, state=lambda: (np.zeros(1),)
    )


def test_the_pipeline_has_all_that_ffcvs_thread_asks_its_loader_for() -> None:
    read = attributes("self.loader", ast.Load, EpochIterator)
    read |= attributes("loader", ast.Load, EpochIterator)
    assert read >= {"graph", "code", "memory_manager"}, MOVED
    assert [name for name in sorted(read) if not hasattr(a_pipeline(), name)] == [], MOVED


def test_the_storage_has_all_that_ffcvs_thread_asks_it_for() -> None:
    read = attributes("self.memory_context", ast.Load, EpochIterator)
    assert read >= {"state", "start_batch"}, MOVED
    storage = a_pipeline().memory_manager.schedule_epoch([])
    assert [name for name in sorted(read) if not hasattr(storage, name)] == [], MOVED


def test_ffcvs_thread_still_reads_what_ours_sets_and_sets_what_ours_reads() -> None:
    ours = attributes("self", ast.Store, EpochThread.run, EpochThread._batches)
    assert {"iter_ixes", "storage_state"} <= ours
    theirs = attributes("self", ast.Load, EpochIterator.run, EpochIterator.run_pipeline)
    assert ours - {"error"} <= theirs, MOVED
    used = {"output_queue", "terminate_event", "memory_context"}
    assert used <= attributes("self", ast.Load, EpochThread)
    assert used <= attributes("self", ast.Store, EpochIterator.__init__), MOVED


def test_another_version_is_warned_of() -> None:
    check_version(version("ffcv"))
    with pytest.warns(RuntimeWarning, match=r"FFCV 2\.0 is installed.*read in 1\.0\.2"):
        check_version("2.0")


def test_the_import_is_light_and_numba_keeps_code_by_its_sources(tmp_path: Path) -> None:
    code = """
        import torch
        torch.set_num_threads(3)
        import convnextv2.data.augment.geometry
        import numba, numba.typed
        from ffcv.fields.rgb_image import IMAGE_MODES
        print(type(IMAGE_MODES) is dict, numba.typed.Dict is not dict, torch.get_num_threads())
        print(numba.config.CACHE_DIR)
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    run = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(run, capture_output=True, text=True, check=True, env=environment)
    light, folder = said.stdout.splitlines()
    assert light == "True True 3"
    assert Path(folder).parent == tmp_path / "convnextv2"
    assert Path(folder).name.startswith("numba-")
