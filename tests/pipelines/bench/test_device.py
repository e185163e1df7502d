"""Benchmarks on the CPU or a GPU: who has none is told so at once, and events take the time."""

import argparse
import json
import sys
from collections.abc import Callable

import pytest
import torch

from pipelines.bench import __main__ as stack
from pipelines.bench import model
from pipelines.bench.device import add_device_option, name_of, seconds_on
from pipelines.bench.train import __main__ as train
from tests.cluster.fake_gpu import visible_gpu


@pytest.mark.parametrize("main", [stack.main, model.main, train.main])
def test_without_a_gpu_one_sentence_and_nothing_is_measured(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system. Please check.")

    visible_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "no GPU can be used: Found no NVIDIA driver on your system; --device cpu measures this "
        "machine's CPU\n"
    )


def test_the_device_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_device_option(parser)
    assert name_of(parser.parse_args([]).device) == "cpu"
    visible_gpu(monkeypatch)
    assert name_of(parser.parse_args(["--device", "cuda"]).device) == "Tesla Made-up"


def test_on_a_gpu_events_take_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Event:
        """Of a clock on which an act takes 250 ms, whatever the host's says."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("record")

        def synchronize(self) -> None:
            told.append("synchronize")

        def elapsed_time(self, other: "Event") -> float:
            assert other is not self
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert seconds_on(torch.device("cuda"), lambda: told.append("act")) == 0.25
    assert told == ["record", "act", "record", "synchronize"]
    told.clear()
    assert seconds_on(torch.device("cpu"), lambda: told.append("act")) < 60
    assert told == ["act"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gather", "ours"])
def test_a_model_is_measured_by_the_path_that_a_gpu_takes(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(model.REPEATS, "cpu", (1, 2, 64))
    monkeypatch.setattr(model, "IMAGE_SIZE", 64)
    model.measure(kind, "pocket", 2, torch.get_num_threads(), "cpu")
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"images_per_second", "share", "sgemm", "peak_mb"}
    assert figures["images_per_second"] > 0


def test_scaling_shares_out_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    visible_gpu(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda", "--parts", "scaling"])
    with pytest.raises(SystemExit):
        train.main()
    assert "leave it out with --device cuda" in capsys.readouterr().err
