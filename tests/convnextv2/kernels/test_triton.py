"""The Triton kernels: equal to plain PyTorch in the interpreter, and compiled for real GPUs."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convnextv2 import kernels
from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae.sparse.gather import VisiblePatches
from convnextv2.kernels import gpu
from convnextv2.kernels.gpu.neighbours import neighbour_table
from tests.convnextv2.kernels.triton_cases import CASES

ROOT = Path(__file__).parents[3]
PROCESSORS = ("80", "90", "100")
"""Compute capabilities, ten times."""
INTERPRETER = "interpreter"

Row = dict[str, Any]


def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed_by(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[Row]]]:
    """What the interpreter or the compiler for a processor prints.

    Those that the chosen tests need begin at once: each uses one core for most of a minute.
    """
    chosen = {item.name for item in request.session.items}
    cases, compiled = (
        "tests.convnextv2.kernels.triton_cases",
        "tests.convnextv2.kernels.triton_compiled",
    )
    running = {}
    if f"{test_equals_the_plain_one_with_every_gradient.__name__}[0]" in chosen:
        running[INTERPRETER] = begin("-m", cases, TRITON_INTERPRET="1")
    for processor in PROCESSORS:
        if f"{test_compiled_code_stays_as_short_as_it_was.__name__}[{processor}]" not in chosen:
            continue
        cache = str(tmp_path_factory.mktemp(processor))
        environment = {"TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0"}
        running[processor] = begin("-m", compiled, processor, **environment)
    yield lambda name: [json.loads(line) for line in printed_by(running[name]).splitlines()]
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def interpreted(started: Callable[[str], list[Row]]) -> list[Row]:
    return started(INTERPRETER)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_the_plain_one_with_every_gradient(number: int, interpreted: list[Row]) -> None:
    case, result = CASES[number], interpreted[number]
    assert result["case"] == json.loads(json.dumps(asdict(case)))
    assert tuple(result["errors"]) == case.names
    # Sums are taken in fp32 at least, so that the result is rounded to its dtype once.
    for name, error in result["errors"].items():
        assert error < 8 * torch.finfo(getattr(torch, case.dtype)).eps, name


@pytest.mark.slow
def test_the_short_gelu_is_as_near_as_it_says(interpreted: list[Row]) -> None:
    errors = interpreted[len(CASES)]
    assert errors["gelu"] < 6e-6
    assert errors["slope"] < 2e-5


# Registers of a thread, and instructions per multiplication (depthwise), channel (what GRN does
# between its passes) or element (the others): a tenth above the highest of the processors, as the
# Triton of PyTorch's present release compiles for them.
CEILINGS = {
    "convolve bf16 s=8 C=40": (72, 2.4),
    "convolve bf16 s=2 C=512": (72, 3.0),
    "convolve bf16 s=1 C=1024": (72, 7.4),
    "convolve fp32 s=1 C=78": (72, 7.2),
    "convolve fp64 s=1 C=78": (72, 8.6),
    "input gradient bf16 s=8 C=40": (72, 2.4),
    "weight gradient bf16 s=8 C=40": (126, 2.2),
    "weight gradient bf16 s=2 C=512": (176, 2.8),
    "weight gradient bf16 s=1 C=1024": (150, 8.0),
    "weight gradient fp32 s=1 C=78": (176, 9.5),
    "square_sums bf16": (64, 19),
    "square_sums fp32": (104, 43),
    "respond bf16": (64, 16),
    "gradient_sums bf16": (168, 29),
    "input_gradient bf16": (112, 28),
    "input_gradient fp32": (136, 50),
    "grn norms bf16": (36, 53),
    "grn norm_gradients bf16": (42, 98),
    "normalise bf16": (48, 17),
    "norm_gradients bf16": (112, 44),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "processor",
    [pytest.param(each, marks=[] if each == "90" else [pytest.mark.soak]) for each in PROCESSORS],
)
def test_compiled_code_stays_as_short_as_it_was(
    processor: str, started: Callable[[str], list[Row]]
) -> None:
    rows = started(processor)
    assert {row["name"] for row in rows} == CEILINGS.keys()
    for row in rows:
        registers, instructions = CEILINGS[row["name"]]
        assert row["registers"] <= registers, row
        assert row["instructions"] <= instructions, row
        assert row["spilled"] == 0, row


def test_takes_tensors_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        x = torch.empty(1, device="cuda")
        assert gpu.usable(x, x)
        assert not gpu.usable(x, x.bfloat16())
        assert not gpu.usable(torch.empty(1, device="cuda", dtype=torch.int32))
        assert not gpu.usable(torch.empty(1, device="cpu"))
        # PyTorch ignores autocast for a GPU that is not there.
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        assert not gpu.usable(x)


def test_is_imported_without_triton_and_then_not_usable() -> None:
    code = (
        "import sys, torch\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "mode = FakeTensorMode()\n"
        "sys.modules['triton'] = None\n"
        "from convnextv2.kernels import gpu\n"
        "with mode: print(gpu.usable(torch.empty(1, device='cuda')))\n"
    )
    assert printed_by(begin("-c", code)) == "False\n"


def test_the_table_of_neighbours() -> None:
    table = neighbour_table(torch.tensor([[4, 0, 5], [1, 2, 3]]), grid=(2, 3), around=3)
    nowhere = [-1, -1, -1]
    # Patch 4 of the first image is in the middle below; 0 lies above to its left, 5 on its right.
    assert table[0].tolist() == [[1, -1, -1], [-1, 0, 2], nowhere]
    # Patch 2 of the second image has 1 on its left, and is the fifth of the batch.
    assert table[4].tolist() == [nowhere, [3, 4, -1], nowhere]
    assert table.dtype == torch.int32


def on_gpu(module: nn.Module) -> None:
    """Replace the parameters, in a mode where tensors are but their shapes."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))


@pytest.mark.slow
def test_torch_compile_keeps_the_kernels_and_lays_no_canvas() -> None:
    encoder = ConvNeXtV2(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20), num_classes=0, stem_stride=1)
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(), torch.device("cuda"):
        on_gpu(encoder)
        sites = VisiblePatches.__new__(VisiblePatches)
        # Its constructor looks at the mask's values, which a tensor without them cannot show.
        sites.patches, sites.grid = torch.zeros(2, 2, dtype=torch.int64), (2, 2)
        sites.patch_size, sites.grn_scope = 8, "image"
        sites.neighbours = kernels.neighbours_of(sites.patches, sites.grid)
        torch._dynamo.reset()
        compiled = torch.compile(encoder.stage_features, backend=record, fullgraph=True)
        outputs = compiled(torch.empty(2, 3, 16, 16), sites)
    assert [tuple(out.shape) for out in outputs] == [
        (2, 2, 8 >> stage, 8 >> stage, width) for stage, width in enumerate((8, 12, 16, 20))
    ]
    (graph,) = graphs
    called = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    assert called["convnextv2.depthwise.default"] == 4
    assert called["convnextv2.gelu_grn.default"] == 4
    assert not [name for name in called if "conv2d" in name or "index_" in name]


def test_the_table_of_neighbours_is_built_once_for_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Tensor | None] = []

    def note(x: Tensor, *others: Tensor | None) -> Tensor:
        given.append(others[-1])
        return x

    monkeypatch.setattr(kernels, "neighbours_of", lambda patches, grid: patches.clone())
    monkeypatch.setattr(kernels, "patch_depthwise", note)
    sites = VisiblePatches(torch.tensor([[True, False, False, True]]), (2, 2), 8, "image")
    for _ in range(2):
        sites.depthwise(torch.zeros(1, 2, 1, 1, 4), torch.zeros(4, 1, 7, 7), torch.zeros(4))
    assert given[0] is given[1] is sites.neighbours
