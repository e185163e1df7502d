"""The file that one stage hands to the next: exact, in any case the same, and little memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT, StateFragment
from pipelines.training.weights import consolidate as module
from pipelines.training.weights.consolidate import consolidate
from tests.cluster.checkpoint.fragments import SHAPES, States, cut, make_states, write_all

Capture = pytest.CaptureFixture[str]


def of_a_task(states: States, size: int) -> list[list[StateFragment]]:
    """Pieces of `size` workers under the names that a task gives them, and one of its own."""
    total = sum(tensors[WEIGHT].numel() for tensors in states.values())
    workers = cut(states, [total * rank // size for rank in range(1, size)])
    renamed = [
        [StateFragment(f"model.{p.name}", p.shape, p.start, p.tensors) for p in fragments]
        for fragments in workers
    ]
    renamed[-1].append(StateFragment("normalize.scale", (1,), 0, {WEIGHT: torch.ones(1)}))
    return renamed


def expected(states: States, kind: str = WEIGHT) -> dict[str, Tensor]:
    return {
        name: tensors.get(kind, tensors[WEIGHT]).view(SHAPES[name])
        for name, tensors in states.items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("elements", [1, 5, 1 << 20])
@pytest.mark.parametrize("kind", [WEIGHT, EMA_WEIGHT])
def test_the_models_own_weights_under_their_own_names(
    kind: str, elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ELEMENTS", elements)
    states = make_states()
    write_all(tmp_path / "step", of_a_task(states, 2))
    told = consolidate(tmp_path / "step", tmp_path / "out.safetensors", kind)
    assert same(load_file(told.file), expected(states, kind))
    assert not same(expected(states, WEIGHT), expected(states, EMA_WEIGHT))
    assert (told.file, told.tensors) == (tmp_path / "out.safetensors", len(SHAPES))
    assert told.parameters == sum(value.numel() for value in expected(states).values())
    assert told.bytes == told.file.stat().st_size


def test_the_file_is_the_same_whoever_saved(tmp_path: Path) -> None:
    contents = set()
    for size in (1, 2, 3, 4):
        write_all(tmp_path / f"by {size}", of_a_task(make_states(), size))
        consolidate(tmp_path / f"by {size}", tmp_path / "out.safetensors")
        contents.add((tmp_path / "out.safetensors").read_bytes())
    assert len(contents) == 1


def test_what_the_weights_say_about_themselves_is_in_the_file(tmp_path: Path) -> None:
    write_all(tmp_path / "step", of_a_task(make_states(), 2))
    said = {"format": "pt", "convnextv2": '{"classes": ["a"]}'}
    consolidate(tmp_path / "step", tmp_path / "out.safetensors", metadata=said)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == said
    assert same(load_file(tmp_path / "out.safetensors"), expected(make_states()))


def test_an_average_that_was_not_kept_is_an_error(tmp_path: Path) -> None:
    states = make_states()
    for tensors in states.values():
        tensors.pop(EMA_WEIGHT, None)
    write_all(tmp_path / "step", of_a_task(states, 1))
    with pytest.raises(ValueError, match="holds no EMA of the weights: it is of a training wi"):
        consolidate(tmp_path / "step", tmp_path / "out.safetensors", EMA_WEIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_without_a_model_there_is_nothing_to_hand_over(tmp_path: Path) -> None:
    write_all(tmp_path / "step", cut(make_states(), []))
    with pytest.raises(ValueError, match="holds no weights of a model"):
        consolidate(tmp_path / "step", tmp_path / "out.safetensors")


def test_what_cannot_be_finished_leaves_what_was_there(tmp_path: Path) -> None:
    write_all(tmp_path / "step", of_a_task(make_states(), 2))
    (tmp_path / "step" / "rank-00001.safetensors").unlink()
    (tmp_path / "out.safetensors").write_text("as it was")
    with pytest.raises(ValueError, match=r"holds no weight of model\.stem\.weight from element"):
        consolidate(tmp_path / "step", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "step"]
    assert (tmp_path / "out.safetensors").read_text() == "as it was"


# Twelve parameters of 8 MB, in room for four of them besides the mapped file, whose pages are the
# kernel's.
LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from cluster.checkpoint.fragment_files import StateFiles
from pipelines.training.weights import consolidate
torch.set_num_threads(1)
step, out, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
room = (int(status["VmData"].split()[0]) << 10) + (32 << 20)
room += sum(file.stat().st_size for file in step.iterdir())
resource.setrlimit(resource.RLIMIT_DATA, (room, room))
if how == "consolidate":
    consolidate.consolidate(step, out)
else:
    files = StateFiles(step)
    everything = [files.whole("weight", name) for name in files]
"""


def test_a_model_that_is_larger_than_memory_is_handed_over(tmp_path: Path) -> None:
    weight = {WEIGHT: torch.arange(2 << 20, dtype=torch.float32)}
    fragments = [StateFragment(f"model.{n}", (2, 1 << 20), 0, weight) for n in range(12)]
    write_all(tmp_path / "step", [fragments])

    def try_to(how: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", LITTLE_MEMORY, tmp_path / "step", tmp_path / "out", how]
        return subprocess.run([str(word) for word in words], capture_output=True, text=True)

    assert "DefaultCPUAllocator: can't allocate" in try_to("read it all").stderr
    done = try_to("consolidate")
    assert done.returncode == 0, done.stderr
    out = load_file(tmp_path / "out")
    assert len(out) == 12
    assert all(torch.equal(each.view(-1), weight[WEIGHT]) for each in out.values())
