"""Pieces on disk come back bit for bit, whoever cut them and whoever asks; damage is an error."""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster import durable
from cluster.checkpoint.fragment_files import StateFiles, file_name, write_fragments
from cluster.checkpoint.fragments import EMA_WEIGHT, WEIGHT, StateFragment
from tests.cluster.checkpoint.fragments import (
    SHAPES,
    cut,
    holds,
    make_states,
    replicated,
    scattered,
    write_all,
)

STATES = make_states()
TOTAL = sum(tensors[WEIGHT].numel() for tensors in STATES.values())
SHARED = {size: [[p.saved_by(rank, size) for p in replicated(STATES)] for rank in range(size)]
          for size in (1, 2, 3, 4, 9)}  # fmt: skip
# Cuts lie inside parameters, at their edges, and beside each other.
CUTS = {
    "one": cut(STATES, []),
    "middle": cut(STATES, [20]),
    "edges": cut(STATES, [48, 52]),
    "empty workers": cut(STATES, [0, 50, 50]),
    "single elements": cut(STATES, [49, 50, 51]),
    **{f"shared by {size}": fragments for size, fragments in SHARED.items()},
    **{f"scattered over {size}": scattered(STATES, size) for size in (1, 2, 3, 4)},
}


@pytest.mark.parametrize("written", CUTS)
def test_any_cut_is_read_by_any_other(written: str, tmp_path: Path) -> None:
    files = write_all(tmp_path, CUTS[written])
    assert holds(tmp_path, STATES)
    for workers in CUTS.values():
        for fragment in (fragment for fragments in workers for fragment in fragments):
            for kind, tensor in fragment.tensors.items():
                assert torch.equal(
                    files.read(kind, fragment.name, fragment.start, fragment.numel), tensor
                )


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.integers(0, TOTAL), max_size=6).map(sorted), seed=st.integers(0, 99))
def test_random_cuts_are_read_in_random_runs(
    places: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = write_all(tmp_path_factory.mktemp("cuts"), cut(STATES, places))
    draw = random.Random(seed)
    for name, tensors in STATES.items():
        begin, end = sorted(draw.choices(range(tensors[WEIGHT].numel() + 1), k=2))
        for kind, tensor in tensors.items():
            assert torch.equal(files.read(kind, name, begin, end - begin), tensor[begin:end])


def test_bits_that_are_no_numbers_come_back_too(tmp_path: Path) -> None:
    odd = torch.tensor([0x7FC00001, -1, 0x7F800000, 1, -(2**31)], dtype=torch.int32)
    fragment = StateFragment("odd", (5,), 0, {WEIGHT: odd.view(torch.float32)})
    read = write_all(tmp_path, [[fragment.saved_by(0, 1)]]).whole(WEIGHT, "odd")
    assert torch.equal(read.view(torch.int32), odd)


def test_the_file_is_a_safetensors_file_with_the_digest_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / file_name(1)
    fragments = CUTS["empty workers"][1] + [
        StateFragment("empty", (0, 3), 0, {WEIGHT: torch.empty(0)})
    ]
    entry = write_fragments(path, fragments)
    content = path.read_bytes()
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert int.from_bytes(content[:8], "little") % 8 == 0, "safetensors aligns the tensors"
    expected = {
        f"{kind}:{fragment.name}": tensor
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    }
    loaded = load_file(path)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_a_system_that_takes_little_at_a_time_gets_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    system_write = os.write

    def write_some(descriptor: int, content: memoryview) -> int:
        taken.append(system_write(descriptor, content[:9]))
        return taken[-1]

    monkeypatch.setattr(durable, "CHUNK", 13)
    monkeypatch.setattr(os, "write", write_some)
    path = tmp_path / file_name(0)
    entry = write_fragments(path, CUTS["one"][0])
    monkeypatch.undo()
    assert max(taken) == 9
    assert entry.bytes == sum(taken) == path.stat().st_size
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert holds(tmp_path, STATES)


def test_what_one_writer_has_of_two_kinds_only_is_known(tmp_path: Path) -> None:
    files = write_all(tmp_path, CUTS["middle"])
    assert set(files) == set(SHAPES)
    assert files.kinds["frozen"] == {WEIGHT}
    assert files.kinds["scale"] == {WEIGHT, "exp_avg", "exp_avg_sq", EMA_WEIGHT}
    with pytest.raises(ValueError, match=f"{tmp_path} holds no {EMA_WEIGHT} of frozen"):
        files.whole(EMA_WEIGHT, "frozen")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no momentum of scale"):
        files.read("momentum", "scale", 0, 1)
    with pytest.raises(ValueError, match="holds no unheard of"):
        files.whole(WEIGHT, "unheard of")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_missing_elements_are_named(lost: int, tmp_path: Path) -> None:
    write_all(tmp_path, cut(STATES, [10, 30]))
    (tmp_path / file_name(lost)).unlink()
    first, last = [(0, 48), (10, 48), (30, 48)][lost]
    files = StateFiles(tmp_path)
    words = f"holds no weight of stem.weight from element {first} to {last}"
    with pytest.raises(ValueError, match=words):
        files.whole(WEIGHT, "stem.weight")
    there = {0: (12, 20), 1: (2, 8), 2: (10, 20)}[lost]
    assert files.read(WEIGHT, "stem.weight", *there).shape == (there[1],)


def test_elements_beyond_the_end_are_not_there(tmp_path: Path) -> None:
    files = write_all(tmp_path, CUTS["one"])
    with pytest.raises(ValueError, match=r"holds no weight of stem\.bias from element 4 to 5"):
        files.read(WEIGHT, "stem.bias", 3, 2)


def test_a_file_cut_short_anywhere_is_an_error(tmp_path: Path) -> None:
    write_all(tmp_path, CUTS["middle"])
    path = tmp_path / file_name(0)
    content = path.read_bytes()
    for length in [0, 7, 8, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{file_name(0)} cannot be read: "):
            StateFiles(tmp_path)


def change(metadata: str | None = None, **tensors: torch.Tensor) -> Callable[[Path], None]:
    """Save the file again with other tensors ("kind__name") and places."""

    def act(path: Path) -> None:
        with safe_open(path, "pt") as file:
            places = file.metadata()["pieces"]
        changed = {key.replace("__", ":"): tensor for key, tensor in tensors.items()}
        save_file(load_file(path) | changed, path, {"pieces": metadata or places})

    return act


def forget_the_places(path: Path) -> None:
    save_file(load_file(path), path)


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (change(weight__scale=torch.ones(1).half()), "weight:scale is F16, states are F32"),
    (change(weight__scale=torch.ones(1).double()), "weight:scale is F64, states are F32"),
    (change(exp_avg__gamma=torch.ones(2)), "the tensors of gamma differ in length: {'average': 3"),
    (change(exp_avg__gamma=torch.ones(1, 3)), "too many values to unpack"),
    (change(weight__more=torch.ones(1)), "fragments are said of more alone"),
    (change(json.dumps({"scale": [0, []]})), "fragments are said of frozen alone"),
    (change("{}["), "Extra data"),
    (change("[]"), "fragments are said of frozen alone"),
    (change("[1]"), "convert"),
    (forget_the_places, "not subscriptable"),
]


@pytest.mark.parametrize(("damage", "words"), WRONG)
def test_a_file_that_is_not_as_we_write_them_is_an_error(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    write_all(tmp_path, CUTS["one"])
    damage(tmp_path / file_name(0))
    with pytest.raises(ValueError, match=rf"{file_name(0)} cannot be read: .*{words}"):
        StateFiles(tmp_path)


def test_a_file_without_weights_is_an_error(tmp_path: Path) -> None:
    moments = {"exp_avg": torch.zeros(3)}
    path = tmp_path / file_name(0)
    save_file({"exp_avg:x": moments["exp_avg"]}, path, {"pieces": '{"x": [0, [3]]}'})
    with pytest.raises(ValueError, match="of x there is exp_avg, but no weight"):
        StateFiles(tmp_path)


def test_files_of_two_models_are_an_error(tmp_path: Path) -> None:
    fragments = [[StateFragment("x", (2, 3), 0, {WEIGHT: torch.zeros(3)})]]
    fragments += [[StateFragment("x", (3, 2), 3, {WEIGHT: torch.zeros(3)})]]
    with pytest.raises(ValueError, match=r"x is \[3, 2\], in another file \(2, 3\)"):
        write_all(tmp_path, fragments)


def test_only_fp32_is_written(tmp_path: Path) -> None:
    fragment = StateFragment(
        "x", (3,), 0, {WEIGHT: torch.zeros(3), "exp_avg": torch.zeros(3).bfloat16()}
    )
    with pytest.raises(ValueError, match=r"saved in fp32; exp_avg:x is torch\.bfloat16"):
        write_fragments(tmp_path / file_name(0), [fragment])
    assert list(tmp_path.iterdir()) == []


def test_two_pieces_of_one_parameter_are_refused(tmp_path: Path) -> None:
    fragments = [StateFragment("x", (6,), start, {WEIGHT: torch.zeros(3)}) for start in (0, 3)]
    with pytest.raises(ValueError, match="one fragment of a parameter"):
        write_fragments(tmp_path / file_name(0), fragments)


def test_a_folder_without_files_holds_nothing(tmp_path: Path) -> None:
    assert list(StateFiles(tmp_path)) == []
    assert StateFiles(tmp_path).read(WEIGHT, "x", 5, 0).numel() == 0
