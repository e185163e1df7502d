"""What is said of a GPU that cannot be used: one sentence each."""

import re

import pytest
import torch

from cluster.gpu import UnusableGPU, open_gpu, refuse_old, taken_by_others
from tests.cluster.fake_gpu import visible_gpu

# PyTorch's own words, which go on for some sentences.
NONE = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU."
OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version."
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (NONE, "no GPU can be used: Found no NVIDIA driver on your system"),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for more.",
            "no GPU can be used: CUDA error: CUDA-capable device(s) is/are busy or unavailable; "
            "another process has it for itself (nvidia-smi lists them)",
        ),
        (
            OLD,
            "no GPU can be used: The NVIDIA driver on your system is too old (found version "
            "11040); update the driver",
        ),
    ],
)
def test_no_driver_an_old_one_and_a_gpu_that_another_process_keeps(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError(words)

    visible_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(UnusableGPU, match=f"^{re.escape(said)}$"):
        open_gpu()


def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    visible_gpu(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UnusableGPU, match=r"built without CUDA; install a CUDA build$"):
        open_gpu()


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_old("NVIDIA A100", (8, 0))
    visible_gpu(monkeypatch)
    assert open_gpu() == torch.device("cuda", 1)
    visible_gpu(monkeypatch, capability=(7, 0))
    with pytest.raises(UnusableGPU, match=r"Tesla Made-up has compute capability 7\.0.*8\.0"):
        open_gpu()


def test_a_gpu_that_others_use() -> None:
    assert taken_by_others(free=78.5, total=79.2) == ""
    assert "about 48 of its 79 GiB" in taken_by_others(free=30.0, total=79.2)
