"""Containers: what a file may be, and that nothing in it is ever run."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convnextv2.weights import WeightsError, inspect, read, write
from tests.convnextv2.weights.made_weights import (
    State,
    classifier_state,
    encoder_state,
    fcmae_state,
    sparse_training_state,
)
from tests.convnextv2.weights.test_weights_dialects import assert_same

STATE = classifier_state()


def official_training_file(path: Path, **more: Any) -> None:
    """As the original's `save_model` writes it, with the arguments of the command line."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(model="convnextv2_atto", lr=None, betas=(0.9, 0.95), use_amp=False)
    content = {"optimizer": optimizer.state_dict(), "epoch": 799, "scaler": {"scale": 65536.0}}
    torch.save({"model": STATE, **content, "args": args, **more}, path)


def test_an_official_training_file_is_read_with_its_arguments(tmp_path: Path) -> None:
    official_training_file(tmp_path / "checkpoint-799.pth")
    assert_same(read(tmp_path / "checkpoint-799.pth"), STATE)
    # Let through for this file only.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_of_weights_and_their_average_the_first_are_read_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-best.pth"
    average = {name: value + 1 for name, value in STATE.items()}
    official_training_file(path, model_ema=average)
    assert_same(read(path), STATE)
    assert_same(read(path, part="model_ema"), average)
    found = inspect(path)
    assert (found.part, found.parts) == ("model", ("model", "model_ema"))
    with pytest.raises(
        WeightsError,
        match=r"no weights under 'ema'; it holds model, optimizer, epoch, scaler, args, model_ema",
    ):
        read(path, part="ema")


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("where", ["args", "inside the model", "inside the namespace"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(
    where: str, zipped: bool, tmp_path: Path
) -> None:
    trap = RunsCode(tmp_path / "trace")
    content: dict[str, Any] = {"model": STATE}
    if where == "args":
        content["args"] = trap
    elif where == "inside the model":
        content["model"] = STATE | {"head.bias": trap}
    else:
        content["args"] = argparse.Namespace(lr=trap)
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is refused: besides tensors it asks for posix.mkdir, and ")
    assert "Nothing of it was run" in message
    assert "safetensors" in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert "\n" not in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["evil.pkl", "evil.pt", "model.safetensors", "pytorch_model.bin"])
def test_a_bare_pickle_is_not_run_under_any_name(name: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(RunsCode(tmp_path / "trace"), protocol))
    with pytest.raises(WeightsError, match=name):
        read(path)
    assert not (tmp_path / "trace").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "model.pt")


def test_of_classes_the_namespace_alone_is_let_through(tmp_path: Path) -> None:
    official_training_file(tmp_path / "job.pth", args=argparse.Namespace(job_dir=Path("/job")))
    with pytest.raises(WeightsError, match=r"it asks for pathlib\.PosixPath, and"):
        read(tmp_path / "job.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"module": state},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
        lambda state: {name: nn.Parameter(value) for name, value in state.items()},
        lambda state: {"net": state, "rng": {"cpu": torch.zeros(8)}, "step": 3},
        lambda state: {"checkpoint": {"model": state, "optimizer": {"state": {}}}},
    ],
)
def test_wrappers_come_off(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    torch.save(wrap(STATE), tmp_path / "weights.bin")
    assert_same(read(tmp_path / "weights.bin"), STATE)
    assert not any(value.requires_grad for value in read(tmp_path / "weights.bin").values())


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "pickle.safetensors")
    save_file(STATE, tmp_path / "safe.pt")
    torch.save(STATE, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name, container in {
        "pickle.safetensors": "PyTorch",
        "safe.pt": "safetensors",
        "old": "PyTorch",
    }.items():
        assert_same(read(tmp_path / name), STATE)
        assert inspect(tmp_path / name).container == container


def test_of_several_models_one_is_asked_for(tmp_path: Path) -> None:
    """Entries of a file, or what the names begin with; as in self-distillation."""
    teacher = {name: value + 1 for name, value in STATE.items()}
    entries = {"student": STATE, "teacher": teacher}
    torch.save(entries, tmp_path / "entries.pth")
    names = {f"{who}.{n}": value for who, state in entries.items() for n, value in state.items()}
    torch.save({"state_dict": names}, tmp_path / "names.pth")
    for file, message in (
        (
            "entries.pth",
            r"holds weights under student, teacher; choose one of them \(--part, part=\)",
        ),
        ("names.pth", r"2 models, under student and teacher; choose one \(--part, part=\)"),
    ):
        with pytest.raises(WeightsError, match=message):
            read(tmp_path / file)
        assert_same(read(tmp_path / file, part="teacher"), teacher)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"epoch": 3, "args": None}, "it holds epoch, args"),
        ({"model": {"a": 1}}, "it holds model"),
        ({}, "it holds a dict"),
        ([torch.ones(2)], "it holds a list"),
        (torch.ones(2), "it holds a Tensor"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(content: Any, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=rf"other\.pt holds no weights.*; {held}$"):
        read(tmp_path / "other.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pytorch_file_is_named(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for kept in (0, 1, 3, 4, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(WeightsError, match=r"cut\.pt is n"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x89PNG\r\n\x1a\n12345"])
def test_another_kind_of_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"file\.pt is neither a safetensors nor a PyTorch file"):
        read(tmp_path / "file.pt")


def test_a_checkpoint_folder_of_a_run_is_read(tmp_path: Path) -> None:
    """As DeepSpeed lays it out without sharded weights; the task's name is before every name."""
    state = fcmae_state()
    inner = tmp_path / "step-00000012" / "deepspeed"
    inner.mkdir(parents=True)
    module = {f"model.{name}": value for name, value in state.items()}
    torch.save({"module": module, "ds_config": {}}, inner / "mp_rank_00_model_states.pt")
    for folder in (inner, inner.parent):
        assert_same(read(folder), state)
        assert inspect(folder).container == "DeepSpeed checkpoint"


def test_the_newest_step_of_deepspeed_is_read(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step12")
    for step in (7, 12):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        state = {f"net.{name}": value + step for name, value in STATE.items()}
        torch.save({"module": state}, folder / "mp_rank_00_model_states.pt")
    assert_same(read(tmp_path), {name: value + 12 for name, value in STATE.items()})
    assert_same(read(tmp_path / "global_step7"), {n: value + 7 for n, value in STATE.items()})


def test_shares_of_zero_3_are_answered_with_what_makes_them_whole(tmp_path: Path) -> None:
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "latest").write_text("global_step3")
    (tmp_path / "global_step3" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    for folder in (tmp_path, tmp_path / "global_step3"):
        with pytest.raises(
            WeightsError,
            match=rf"is a ZeRO-3 checkpoint of DeepSpeed.*: cd {tmp_path} && python zero_to_fp32"
            rf"\.py \. weights --tag global_step3; then give {tmp_path}/weights$",
        ):
            read(folder)


def test_a_checkpoint_of_a_run_is_answered_with_the_command_that_exports_it(tmp_path: Path) -> None:
    (tmp_path / "rank-00000.safetensors").touch()
    with pytest.raises(
        WeightsError, match=rf"convnextv2 checkpoint consolidate {tmp_path} --output mo"
    ):
        read(tmp_path)


def write_shards(folder: Path, index: str) -> None:
    """Two shards as transformers names them, every second tensor in the second one."""
    name, _, ending = index.removesuffix(".index.json").rpartition(".")
    shards = [f"{name}-0000{number}-of-00002.{ending}" for number in (1, 2)]
    weight_map = {tensor: shards[number % 2] for number, tensor in enumerate(STATE)}
    for shard in shards:
        part = {tensor: value for tensor, value in STATE.items() if weight_map[tensor] == shard}
        save = save_file if ending == "safetensors" else torch.save
        save(part, folder / shard)
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / index).write_text(json.dumps(content))


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_are_read_together(index: str, tmp_path: Path) -> None:
    write_shards(tmp_path, index)
    for path in (tmp_path, tmp_path / index):
        assert_same(read(path), STATE)
    assert inspect(tmp_path).file == tmp_path
    assert len(inspect(tmp_path).files) == 2
    missing = sorted(tmp_path.glob("*-00002-of-*"))[0]
    missing.unlink()
    with pytest.raises(WeightsError, match=rf"2 files, of which these are not .*: {missing.name}$"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no index of shards"),
        ('{"weight_map": {}}', "must name files beside it, it names nothing"),
        ('{"weight_map": {"a": "../secret.bin"}}', r"must name .*, it names \.\./secret\.bin"),
    ],
)
def test_an_index_that_is_none_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        read(tmp_path)


def test_a_folder_with_one_weight_file_is_that_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no model\.safetensors, .*give the file itself"):
        read(tmp_path)
    save_file(STATE, tmp_path / "fcmae.safetensors")
    assert_same(read(tmp_path), STATE)
    save_file(encoder_state(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="give the file itself"):
        read(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert_same(read(tmp_path), STATE)


def test_pytorch_files_are_written_as_their_readers_want_them(tmp_path: Path) -> None:
    write(STATE, tmp_path / "official.pth", to="official")
    write(STATE, tmp_path / "timm.pt", to="timm")
    official = torch.load(tmp_path / "official.pth", weights_only=True)
    timm = torch.load(tmp_path / "timm.pt", weights_only=True)
    assert official.keys() == {"model"}
    assert_same(official["model"], STATE)
    assert torch.equal(timm["stem.0.weight"], STATE["downsample_layers.0.0.weight"])


def test_a_view_is_written_without_what_is_around_it(tmp_path: Path) -> None:
    around = torch.randn(4, 5, 3, 4, 4)
    state: dict[str, Tensor] = STATE | {
        "downsample_layers.0.0.weight": around[:, 2].contiguous(memory_format=torch.channels_last),
        "head.bias": torch.zeros(1_000_000)[:5],
    }
    for name in ("view.pt", "view.safetensors"):
        write(state, tmp_path / name, to="official")
        assert_same(read(tmp_path / name), state)
        assert (tmp_path / name).stat().st_size < 100_000


def test_hugging_faces_configuration_says_the_model(tmp_path: Path) -> None:
    write(STATE, tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["ConvNextV2ForImageClassification"]
    assert config["model_type"] == "convnextv2"
    assert (config["depths"], config["hidden_sizes"]) == ([1, 1, 2, 1], [4, 6, 8, 10])
    assert (config["num_channels"], config["patch_size"]) == (3, 4)
    assert list(config["id2label"]) == ["0", "1", "2", "3", "4"]
    assert config["layer_norm_eps"] == 1e-6
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers asks for it.


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    write(STATE, tmp_path / "hf", to="hf")  # Empty: nothing to lose.
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()
    with pytest.raises(WeightsError, match=r"hf exists already"):
        write(encoder_state(), tmp_path / "hf", to="hf")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("to", ["official", "timm"])
def test_a_file_of_another_ending_is_not_written(to: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"out\.onnx must end in one of \.safetensors, \.pt, "):
        write(STATE, tmp_path / "out.onnx", to=to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "hf"])
def test_a_failed_write_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    if name != "hf":
        path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(STATE, path, to="hf" if name == "hf" else "timm")
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert left == ({} if name == "hf" else {name: b"before"})


def test_a_file_can_be_converted_in_place(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(sparse_training_state(fcmae_state()), path)
    write(read(path), path, to="official")
    assert_same(read(path), fcmae_state())
