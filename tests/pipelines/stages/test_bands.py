"""Images of five channels and 16 bits, from files of every kind to what is trained on them."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image

from convnextv2.analysis.reconstruct import MASK_GREY, reconstruct
from convnextv2.data.collection import PixelFormat, Pixels
from convnextv2.data.loading.loader import BetonLoader
from convnextv2.data.loading.views import SquashView
from convnextv2.data.pixels.visible import visible
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.shards.manifest import Manifest, read_manifest
from convnextv2.data.shards.mapped import open_shards
from convnextv2.data.writing import WriteSettings, write_collection
from convnextv2.tasks import IMAGENET, Normalize
from convnextv2.tasks.pretrain import PretrainTask
from pipelines import cli
from pipelines.commands.run import Request
from pipelines.config import PipelineConfig
from pipelines.graph.outline import wanted_stages
from pipelines.presets import load_preset
from pipelines.stages import finetune, pretrain
from pipelines.stages.given_shards import find_shards_conflicts
from pipelines.training.job import TrainJob
from pipelines.training.weights.metadata import metadata_of
from tests.convnextv2.data.fixtures.archives import put, tar
from tests.convnextv2.data.fixtures.pictures import Pictures, write
from tests.convnextv2.data.pixels.test_bands import written
from tests.pipelines.stages.jobs import made_up_job

CHANNELS, SIDE = 5, 32
VIEW = SquashView(size=(SIDE, SIDE))


def array(number: int) -> Pixels:
    rng = np.random.default_rng(number)
    return rng.integers(100, 4000, (SIDE, SIDE, CHANNELS)).astype(np.uint16)


def npy(values: Pixels) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def tiff(values: Pixels) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


def in_folders(root: Path) -> None:
    for number in range(4):
        content = npy(array(number)) if number % 2 else tiff(array(number))
        put(root / "ab"[number % 2] / f"{number}{'.npy' if number % 2 else '.tif'}", content)


def in_webdataset(root: Path) -> None:
    files: dict[str, bytes] = {}
    for number in range(4):
        files |= {f"{number}.npy": npy(array(number)), f"{number}.cls": str(number % 2).encode()}
    put(root / "shard-000000.tar", tar(files))


def in_parquet(root: Path) -> None:
    images = [npy(array(number)) for number in range(4)]
    root.mkdir(parents=True)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), root / "train.parquet")


def in_parquet_lists(root: Path) -> None:
    kind = pa.list_(pa.list_(pa.list_(pa.uint16())))
    images = pa.array([array(number).tolist() for number in range(4)], kind)
    root.mkdir(parents=True)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), root / "train.parquet")


@pytest.mark.parametrize("lay_out", [in_folders, in_webdataset, in_parquet, in_parquet_lists])
def test_every_layout_may_hold_arrays(lay_out: object, tmp_path: Path) -> None:
    lay_out(tmp_path / "source")  # type: ignore[operator]
    source, _ = open_selected(tmp_path / "source", Selection(val_fraction=1e-9))
    manifest = write_collection(
        source, "it", tmp_path / "shards", Selection(), WriteSettings(channels=CHANNELS)
    )
    assert manifest.pixel_format == (CHANNELS, 16)
    shards = open_shards(tmp_path / "shards", manifest)
    found = {
        (shards.read(0, begin, begin + array(0).nbytes), int(label))
        for begin, label in zip(
            map(int, shards.records(0)["f0"]["data_ptr"]), shards.labels(), strict=True
        )
    }
    assert found == {(array(number).tobytes(), number % 2) for number in range(4)}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five channels of 16 bits under train/ and val/."""
    in_folders(tmp_path / "source")
    for split in ("train", "val"):
        source, _ = open_selected(tmp_path / "source", Selection(val_fraction=1e-9))
        write_collection(
            source, "it", tmp_path / "shards" / split, Selection(), WriteSettings(channels=CHANNELS)
        )
    return tmp_path / "shards"


def job_of(shards: Path, config: PipelineConfig, stage: str) -> TrainJob:
    normalization = read_manifest(shards / "train").normalization
    recipe = config.recipes()[stage]
    return made_up_job(config, recipe, shards, num_classes=2, normalization=normalization)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_they_are_trained_on_normalised_by_what_was_measured(shards: Path, stage: str) -> None:
    config = load_preset("demo", [f"model.in_channels={CHANNELS}", "pretrain.decoder_dim=16"])
    job = job_of(shards, config, stage)
    task = (pretrain if stage == "pretrain" else finetune).build_task(job)
    (batch,) = BetonLoader(shards / "train", batch_size=4, view=VIEW).batches(
        np.arange(4, dtype=np.uint64)
    )
    normalize = task.normalize
    assert isinstance(normalize, Normalize)
    seen = normalize(batch.images, torch.float32)
    assert seen.shape == (4, CHANNELS, SIDE, SIDE)
    assert seen.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (seen.std(dim=(0, 2, 3), unbiased=False) - 1).abs().max() < 1e-4
    evaluation = metadata_of(job).evaluation
    assert evaluation is not None
    assert (evaluation.mean, evaluation.std) == job.normalization[:2]
    task(batch).loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_weights_say_how_they_were_evaluated_when_they_were_trained(shards: Path) -> None:
    """A later `evaluate.crop` is in no training's key, so nothing but this note may follow it."""
    crops = [0.875, 0.5]
    notes = []
    for crop in crops:
        config = load_preset("demo", [f"model.in_channels={CHANNELS}", f"evaluate.crop={crop}"])
        notes.append(metadata_of(job_of(shards, config, "finetune")))
    before, after = (note.evaluation for note in notes)
    assert before is not None
    assert after is not None
    assert [before.crop, after.crop] == crops
    assert replace(notes[0], evaluation=replace(before, crop=0.5)) == notes[1]


def test_reconstructions_show_some_channels(shards: Path) -> None:
    config = load_preset("demo", [f"model.in_channels={CHANNELS}", "pretrain.decoder_dim=16"])
    task = pretrain.build_task(job_of(shards, config, "pretrain"))
    assert isinstance(task, PretrainTask)
    (batch,) = BetonLoader(shards / "train", batch_size=4, view=VIEW).batches(
        np.arange(4, dtype=np.uint64)
    )
    by = read_manifest(shards / "train").normalization
    mask = torch.zeros(4, task.model.grid[0] * task.model.grid[1])
    mask[:, ::2] = 1
    made = reconstruct(task.model, batch.images, mask, by)
    for pictures in (made.original, made.masked, made.predicted):
        assert (pictures.shape, pictures.dtype) == ((4, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(made.original, visible(batch.images.numpy(), by))
    assert 40 < made.original.std() < 90, "neither grey nor black and white"
    shown = (made.masked != MASK_GREY).any(axis=-1)
    assert 0.4 < shown.mean() < 0.6
    np.testing.assert_array_equal(made.predicted[shown], made.original[shown])


def test_rgb_is_shown_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    assert visible(image, IMAGENET) is image


def conflicts(shards: Path, *overrides: str) -> list[str]:
    """What is wrong with shards for all stages of the demo."""
    config = load_preset("demo", [f"data.source={shards}", *FEW, *overrides])
    return find_shards_conflicts(config, wanted_stages(config))


FIVE = ("model.in_channels=5", "pretrain.augment.color_jitter=0")
FEW = (
    "pretrain.train_images=null", "pretrain.warmup=0", "finetune.warmup=0",
    *(f"{name}.{field}={value}" for name in ("pretrain", "finetune")
      for field, value in (("global_batch_size", 4), ("micro_batch_size", 2))),
    "finetune.labels_per_class=2",
)  # fmt: skip


def test_shards_that_do_not_fit_the_model_are_refused(shards: Path) -> None:
    have = f"the images of {shards} have 5 channels of 16 bits"
    assert conflicts(shards) == [
        f"model.in_channels: 3, and {have}; model.in_channels=5 would work"
    ]
    # What would be refused next is said as well.
    assert conflicts(shards, "finetune.augment.rand_augment=9", "data.write.mode=proportion") == [
        f"model.in_channels: 3, and {have}; model.in_channels=5 would work",
        f"data.write.mode: proportion makes JPEGs of RGB of 8 bits, and {have}; raw would work",
        f"finetune.augment.rand_augment: changes colours of RGB of 8 bits, and {have}; 0 would "
        "work",
    ]
    assert conflicts(shards, *FIVE) == []
    (shards / "val" / "manifest.json").write_text("{")
    (unread,) = conflicts(shards, *FIVE)
    assert unread.startswith(f"data.source: {shards}/val")


def test_both_splits_are_of_the_same_kind(shards: Path, tmp_path: Path) -> None:
    write(Pictures(((8, 8),) * 3), tmp_path / "other" / "val")
    (tmp_path / "other" / "train").symlink_to(shards / "train")
    first, *_ = conflicts(tmp_path / "other", *FIVE)
    assert "other/train has images of 5 channels of 16 bits, " in first
    assert "other/val of 3 channels of 8 bits; write one of them again with data write" in first


def test_rgb_of_16_bits_is_told_before_what_is_for_8_fails_on_it(tmp_path: Path) -> None:
    """RandAugment would, after all of pretraining; only settings that say 16 bits rule it out."""
    for split in ("train", "val"):
        written(tmp_path / split, PixelFormat(3, 16), bits=16)
    have = f"the images of {tmp_path} have 3 channels of 16 bits"
    told = f"data.write.bits: 8, and {have}; data.write.bits=16 would work"
    assert told in conflicts(tmp_path)
    assert told not in conflicts(tmp_path, "data.write.bits=16")


def test_a_command_lists_what_is_wrong_with_settings_and_shards_together(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    command = ["run", "demo", "--data", str(shards), "--run-dir", str(run_dir), "--set"]
    wrong = [
        "data.multi_label=true",
        "pretrain.decoder_dim=0",
        "pretrain.global_batch_size=64",
    ]  # Of 4 images.
    assert cli.main([*command, *" --set ".join([*FEW, *wrong]).split(" ")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: 5 problems in the settings"
    assert [line.split(":")[0].strip() for line in said[1:]] == [
        "pretrain.decoder_dim",
        "model.in_channels",
        "pretrain.global_batch_size",
        "data.multi_label",
        "data.multi_label",
    ]
    assert not run_dir.exists()


def test_a_command_is_not_refused_for_stages_it_does_not_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr("pipelines.commands.run.run_pipeline", asked.append)
    overrides = " --set ".join([*FEW, *FIVE, "finetune.labels_per_class=3"]).split(" ")
    for command, fine in (("pretrain", True), ("finetune", False), ("report", True)):
        words = [command, "--preset", "demo", "--data", str(shards)]
        words += ["--run-dir", str(tmp_path), "--set", *overrides]
        asked.clear()
        with contextlib.suppress(AttributeError):  # Nothing comes of it.
            cli.main(words)
        assert bool(asked) == fine, command


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_the_channels_of_rgb_are_measured_on_demand(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = Pictures(((20, 30),) * 4)
    write(pictures, tmp_path, WriteSettings(mode=mode))  # type: ignore[arg-type]
    assert cli.main(["data", "info", str(tmp_path), "--stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pixels = np.concatenate([pictures.image(n).reshape(-1, 3) for n in range(4)]) / 255
    tolerance = 1e-5 if mode == "raw" else 0.02
    np.testing.assert_allclose(told["mean"], pixels.mean(axis=0), atol=tolerance)
    np.testing.assert_allclose(told["std"], pixels.std(axis=0), atol=tolerance)


def test_the_channels_of_others_are_told_from_the_manifest(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: Manifest = read_manifest(shards / "train")
    assert cli.main(["data", "info", str(shards / "train"), "--stats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["channels"], told["bits"]) == (5, 16)
    np.testing.assert_allclose(told["mean"], manifest.mean, atol=1e-6)
    assert cli.main(["data", "info", str(shards.parent / "source"), "--stats"]) == 1
    assert "--stats is for shards" in capsys.readouterr().err


def test_settings_for_rgb_are_named_with_what_would_show_them(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = shards / "sheet.png"
    command = ["data", "sample", str(shards / "train"), "--output", str(sheet), "--count", "4"]
    assert cli.main(command) == 1
    said = capsys.readouterr().err
    assert "the settings, for the images of" in said
    assert "finetune.augment.rand_augment: changes colours of RGB of 8 bits, and the images" in said
    assert "have 5 channels of 16 bits; 0 would work" in said
    assert cli.main([*command, "--set", "finetune.augment.rand_augment=0"]) == 0
    assert sheet.exists()


def test_a_batch_of_them_can_be_looked_at(shards: Path) -> None:
    sheet = shards / "sheet.png"
    command = ["data", "sample", str(shards / "train"), "--output", str(sheet), "--preset", "demo"]
    assert cli.main([*command, "--set", f"model.in_channels={CHANNELS}"]) == 0
    assert np.asarray(Image.open(sheet)).std() > 20
