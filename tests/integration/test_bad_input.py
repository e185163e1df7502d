"""Bad input as a user meets it: one readable message, exit code 1, nothing half done."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.fcmae import FCMAE
from pipelines.cli import main
from pipelines.graph import hash_files
from tests.integration.conftest import SMALL, Start, output

Capture = pytest.CaptureFixture[str]


def run(*words: str) -> int:
    return main(list(words))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["pretrain.durtion=3"],
            ["unknown key 'pretrain.durtion'", "did you mean 'pretrain.duration'"],
        ),
        (["model.image_size=30"], ["no multiple of model.patch_size 8", "24 or 32 would work"]),
        (["model.patch_size=12"], ["no multiple of the total stride 8", "8 or 16 would work"]),
        (
            ["cluster.num_workers=3"],
            ["pretrain: global_batch_size 128 does not divide", "192 would work"],
        ),
        (["seed=x", "seeed=1"], ["2 problems", "seed: ", "did you mean 'seed'"]),
    ],
)
def test_settings(settings: list[str], words: list[str], tmp_path: Path, capsys: Capture) -> None:
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert run("demo", "--run-dir", str(tmp_path / "run"), *arguments) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_data_folders(tmp_path: Path, capsys: Capture) -> None:
    empty, bare = tmp_path / "empty", tmp_path / "bare"
    empty.mkdir()
    (bare / "cat").mkdir(parents=True)
    for folder, words in (
        (tmp_path / "absent", "does not exist"),
        (empty, "is empty"),
        (bare, "no images under"),
    ):
        run_dir = tmp_path / "run"
        assert run("demo", "--data", str(folder), "--run-dir", str(run_dir)) == 1
        error = capsys.readouterr().err
        assert str(folder) in error
        assert words in error
        assert not run_dir.exists()


def test_a_refused_command_leaves_a_folder_as_it_was(tmp_path: Path, capsys: Capture) -> None:
    run_dir = tmp_path / "run"
    there = ("--data", str(tmp_path), "--run-dir", str(run_dir))
    assert run("demo", *there, "--rerun", "nope") == 1
    assert "nope" in capsys.readouterr().err
    assert not run_dir.exists()
    run_dir.mkdir()
    (run_dir / "notes.txt").write_text("mine")
    assert run("demo", "--data", str(tmp_path / "absent"), "--run-dir", str(run_dir)) == 1
    assert (run_dir / "notes.txt").read_text() == "mine"


@pytest.fixture
def flawed(photos: Path, tmp_path: Path) -> Path:
    """The collection with two images that cannot be read."""
    root = tmp_path / "flawed"
    shutil.copytree(photos, root)
    (root / "val" / "disc" / "0.png").write_bytes(b"not a picture")
    whole = root / "val" / "ramp" / "1.png"
    whole.write_bytes(whole.read_bytes()[:100])
    return root


@pytest.mark.slow
def test_unreadable_images(flawed: Path, tmp_path: Path, capsys: Capture) -> None:
    shards = tmp_path / "out"
    arguments = ["data", "write", str(flawed), str(shards), "--split", "val", "--num-workers", "1"]
    assert run(*arguments, "--max-unreadable", "1") == 1
    error = capsys.readouterr().err
    assert "2 images cannot be read, more than max_unreadable = 1" in error
    assert "disc/0.png" in error
    assert not list(shards.glob("*.beton"))

    assert run(*arguments, "--max-unreadable", "2", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert sorted(Path(name).name for name, _ in manifest["skipped"]) == ["0.png", "1.png"]
    assert sum(shard["samples"] for shard in manifest["shards"]) == 22


@pytest.mark.slow
def test_full_disk_while_writing(photos: Path, tmp_path: Path) -> None:
    """A file size limit fails a write half way, as a full disk does."""
    shards = tmp_path / "out"
    script = (
        "import resource, sys; from pathlib import Path;"
        "from convnextv2.data.selection import Selection, open_selected;"
        "from convnextv2.data.writing import WriteSettings, write_collection;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "source, selection = open_selected(Path(sys.argv[1]), Selection());"
        "write_collection(source, 'photos', Path(sys.argv[2]), selection, WriteSettings())"
    )
    limited = [sys.executable, "-c", script, str(photos), str(shards)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert str(shards) in done.stderr.splitlines()[-1]
    assert not [path for path in shards.iterdir() if "beton" in path.name]
    source, selection = open_selected(photos, Selection())
    write_collection(source, "photos", shards, selection, WriteSettings())
    assert sorted(path.name for path in shards.iterdir() if path.name[0] != ".") == [
        "manifest.json",
        "train-00000-of-00001.beton",
    ]


@pytest.mark.slow
def test_port_in_use(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job = start("pretrain", tmp_path / "run", settings=(f"cluster.dashboard_port={port}",))
        _, error = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert f"port {port} for Ray's dashboard is in use" in error


@pytest.mark.soak
def test_a_warm_up_that_is_too_long_costs_no_worker(start: Start, tmp_path: Path) -> None:
    """How many steps an epoch has is known when the images are written, and not before."""
    job = start("pretrain", tmp_path / "run", settings=("pretrain.warmup=25 steps",))
    _, error = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert "the warm-up of 25 steps is longer than the 24 of training" in error
    assert not list((tmp_path / "run" / "logs").glob("pretrain*"))


@pytest.mark.soak
def test_a_checkpoint_of_another_model(start: Start, tmp_path: Path) -> None:
    """The pretrained file is replaced by one of another size, as a mixed-up copy would be."""
    run_dir = tmp_path / "run"
    start("pretrain", run_dir).finish()
    other = FCMAE.from_size("pocket", stem_stride=2, image_size=32, patch_size=16, decoder_dim=8)
    target = output(run_dir, "pretrain", "fcmae.safetensors")
    was = {"bytes": target.stat().st_size, **hash_files(target.parent, target.name)}
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, target)
    # The stage notices a changed file by itself; make it look finished with this one.
    now = {"bytes": target.stat().st_size, **hash_files(target.parent, target.name)}
    complete = target.with_name("COMPLETE.json")
    text = complete.read_text()
    for name, value in was.items():
        text = text.replace(str(value), str(now[name]))
    complete.write_text(text)
    job = start("finetune", run_dir, settings=("cluster.max_failures=0",))
    _, error = job.process.communicate(timeout=300)
    assert job.process.returncode == 1
    assert "these weights are of another model" in error
    assert "downsample_layers.0.0.weight is (16, 3, 2, 2), the model has (16, 3, 1, 1)" in error


def test_a_run_folder_in_use(tmp_path: Path, photos: Path, capsys: Capture) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    holder = subprocess.Popen(
        ["flock", str(run_dir / ".lock"), "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    settings = [word for setting in SMALL for word in ("--set", setting)]
    code = run("demo", "--data", str(photos), "--run-dir", str(run_dir), *settings)
    holder.communicate()
    assert code == 1
    assert f"{run_dir} is in use by process" in capsys.readouterr().err


def test_nothing_heavy_is_imported_for_a_wrong_setting() -> None:
    probe = (
        "import sys; from pipelines.cli import main; main(['demo', '--set', 'a=1']);"
        "print([m for m in ('torch', 'ray', 'deepspeed', 'mlflow', 'numba') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
