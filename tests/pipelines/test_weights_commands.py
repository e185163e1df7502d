"""`convnextv2 weights`: what it prints, and how it ends."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convnextv2.encoder import ConvNeXtV2
from convnextv2.weights import encoder_of, read
from pipelines import cli
from tests.cluster.workers import run_group
from tests.convnextv2.made_weights import (
    classifier_state,
    encoder_state,
    fcmae_state,
    sparse_training_state,
)
from tests.convnextv2.test_weights_dialects import assert_same

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """`main` takes over SIGTERM; give it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_inspect_says_what_a_classifier_is(tmp_path: Path, capsys: Capture) -> None:
    state = ConvNeXtV2.from_size("atto", num_classes=10, in_channels=1).state_dict()
    path = tmp_path / "atto.pt"
    torch.save({"model": state, "model_ema": state}, path)
    assert cli.main(["weights", "inspect", str(path)]) == 0
    # Counted from the published 3,708,400 (1000 classes of 320 + 1; 3 channels of 16 pixels by 40).
    parameters = 3_708_400 - 990 * 321 - 2 * 16 * 40
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "  dialect     official",
        "  container   PyTorch",
        "  part        model, there is also model_ema",
        "  size        atto, depths 2-2-6-2, channels 40-80-160-320",
        "  images      1 channels, stem stride 4",
        "  classes     10",
        f"  parameters  {parameters:,} in float32",
        "  decoder     none, so reconstruct will not work: it is a classifier, whose decoder was "
        "dropped before fine-tuning",
    ]


def test_inspect_says_what_a_pretraining_is(tmp_path: Path, capsys: Capture) -> None:
    state = fcmae_state("unet", dim=64)
    torch.save({"model": sparse_training_state(state)}, tmp_path / "sparse.pth")
    assert cli.main(["weights", "inspect", str(tmp_path / "sparse.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "sparse.pth"),
        "dialect": "official-sparse",
        "container": "PyTorch",
        "part": "model",
        "parts": ["model"],
        "size": "custom",
        "depths": [1, 1, 2, 1],
        "dims": [4, 6, 8, 10],
        "in_channels": 3,
        "stem_stride": 4,
        "num_classes": 0,
        "decoder": "unet",
        "decoder_dim": 64,
        "decoder_depth": 2,
        "parameters": sum(value.numel() for value in state.values()),
        "dtypes": ["float32"],
        "why_no_reconstruction": "",
    }
    assert cli.main(["weights", "inspect", str(tmp_path / "sparse.pth")]) == 0
    assert "  decoder     unet, 64 channels, depth 2\n" in capsys.readouterr().out


def test_inspect_says_why_a_published_file_cannot_reconstruct(
    tmp_path: Path, capsys: Capture
) -> None:
    torch.save({"model": encoder_state()}, tmp_path / "atto_fcmae.pt")
    assert cli.main(["weights", "inspect", str(tmp_path / "atto_fcmae.pt")]) == 0
    out = capsys.readouterr().out
    assert "  classes     no head\n" in out
    assert "reconstruct will not work: it is an encoder alone, as are the published" in out


def test_convert_writes_and_says_what_it_left_out(tmp_path: Path, capsys: Capture) -> None:
    source, target = tmp_path / "fcmae.safetensors", tmp_path / "deep" / "timm.safetensors"
    save_file(fcmae_state(), source)
    assert cli.main(["weights", "convert", str(source), str(target), "--to", "timm"]) == 0
    encoder = encoder_of(fcmae_state())
    assert_same(read(target), encoder)
    parameters = sum(value.numel() for value in encoder.values())
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: custom for timm, {parameters:,} parameters, from fcmae",
        "  the encoder only: timm has no place for FCMAE's decoder and mask token",
        "  without final norm and head, which are trained with the classifier: load with "
        "strict=False",
        "  timm has no model of this size: timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), "
        "dims=(4, 6, 8, 10), use_grn=True, ls_init_value=None)",
    ]


def test_convert_of_a_published_size_has_nothing_to_add(tmp_path: Path, capsys: Capture) -> None:
    state = ConvNeXtV2.from_size("atto", num_classes=3).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    words = ["weights", "convert", str(tmp_path / "model.safetensors"), str(tmp_path / "hf")]
    assert cli.main([*words, "--to", "hf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": str(tmp_path / "model.safetensors"),
        "dialect": "official",
        "destination": str(tmp_path / "hf"),
        "to": "hf",
        "size": "atto",
        "parameters": sum(value.numel() for value in state.values()),
        "notes": [],
    }
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    assert_same(read(tmp_path / "hf"), state)


def test_convert_reads_the_part_it_is_told(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in classifier_state().items()}
    torch.save({"model": classifier_state(), "model_ema": average}, tmp_path / "best.pth")
    target = tmp_path / "out.pt"
    words = ["weights", "convert", str(tmp_path / "best.pth"), str(target), "--to", "official"]
    assert cli.main([*words, "--part", "model_ema"]) == 0
    assert_same(read(target), average)


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_errors_are_one_line_and_nothing_is_written(
    verb: str, tmp_path: Path, capsys: Capture
) -> None:
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "odd.pt")
    more = [str(tmp_path / "out.pt"), "--to", "timm"] if verb == "convert" else []
    for name, words in (
        ("odd.pt", "is refused: besides tensors it asks for torch.nn.modules.linear.Linear"),
        ("gone.pt", "does not exist"),
    ):
        assert cli.main(["weights", verb, str(tmp_path / name), *more]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def save_as_a_run_does(folder: Path) -> None:
    """One worker saves a pretraining in DeepSpeed's own files, under ZeRO-0, 1 and 3."""
    from cluster.engine import DeepSpeedEngine, EngineSettings
    from cluster.topology import Topology
    from cluster.zero import ZeroSettings
    from convnextv2.fcmae import FCMAE
    from convnextv2.tasks.pretrain import PretrainTask

    for stage in (0, 1, 3):
        torch.manual_seed(0)
        model = FCMAE.from_size("pocket", image_size=64, decoder_dim=8)
        torch.save(model.state_dict(), folder / "expected.pt")
        task = PretrainTask(model, seed=0)
        engine = DeepSpeedEngine(
            task,
            [{"params": list(task.parameters()), "lr_scale": 1.0, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            settings=EngineSettings(zero=ZeroSettings(stage=stage)),
            topology=Topology(2, micro_batch_size=2, world_size=1),
            device=torch.device("cpu"),
        )
        engine._engine.save_checkpoint(str(folder / f"zero-{stage}"), tag="deepspeed")


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_read(tmp_path: Path, capsys: Capture) -> None:
    run_group(save_as_a_run_does, 1, tmp_path, tmp_path)
    expected = torch.load(tmp_path / "expected.pt")
    for stage in (0, 1):
        assert_same(read(tmp_path / f"zero-{stage}"), expected)
    assert cli.main(["weights", "inspect", str(tmp_path / "zero-3")]) == 1
    assert "is a ZeRO-3 checkpoint: its weights are in pieces" in capsys.readouterr().err
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "rank-00000.safetensors").touch()
    assert cli.main(["weights", "inspect", str(tmp_path / "ours")]) == 1
    assert "convnextv2 checkpoint export" in capsys.readouterr().err
