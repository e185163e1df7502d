"""`convnextv2 data write`, `info`, `check` on real files; writers that die on a real cluster."""

import io
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.launch import Cluster, ClusterError, Placement
from convnextv2.data.collection import RGBImage
from convnextv2.data.selection import Selection
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.writing import WriteSettings, write_collection
from pipelines import cli
from pipelines.config import WriteConfig
from pipelines.stages.write_data import write_settings
from tests.convnextv2.data.fixtures.pictures import Pictures, write

Capture = pytest.CaptureFixture[str]
IMAGES = 24
WRITE = ["--max-resolution", "40", "--num-shards", "2", "--val-fraction", "0.25"]
WRITE += ["--max-unreadable", "1"]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _own_signals_and_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`main` takes over SIGTERM; give it back. No cluster of somebody else's is joined."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of JPEGs, and one that is none."""
    source = Pictures(((50, 60),) * IMAGES)
    for number in range(IMAGES):
        path = tmp_path / "photos" / source.classes[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(number)).save(path)
    (tmp_path / "photos" / "eel" / "damaged.jpg").write_text("404")
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write(Pictures(((50, 60),) * IMAGES), tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.slow
def test_write_then_write_again(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "shards"
    words = ["data", "write", str(photos), str(folder), *WRITE]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    manifest = read_manifest(folder)
    assert f"{folder}: {manifest.samples} images of 3 classes in 2 shards" in told
    assert f"\n  skipped {photos / 'eel' / 'damaged.jpg'}: none of the formats" in told
    assert 0 < manifest.samples < IMAGES
    assert manifest.selection["val_fraction"] == 0.25
    assert manifest.settings["max_resolution"] == 40

    assert cli.main([*words, "--json"]) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["digest"] == manifest.digest
    assert "is complete already: nothing to do" in error


def test_options_of_write_are_the_settings_of_a_pipeline_with_the_same_defaults() -> None:
    options = cli.build_parser().parse_args(["data", "write", "photos", "shards"])
    usual = WriteConfig().model_dump()
    assert {name: getattr(options, name) for name in usual} == usual


def test_settings_of_a_pipeline_reach_the_writer() -> None:
    config = WriteConfig(
        mode="smart", max_resolution=96, jpeg_quality=70, smart_threshold=9,
        compress_probability=0.25, shard_gb=1.5, max_unreadable=3, bits=8,
    )  # fmt: skip
    assert write_settings(config, 3, num_shards=4) == WriteSettings(
        mode="smart", max_resolution=96, jpeg_quality=70, smart_threshold=9,
        compress_probability=0.25, shard_bytes=1_500_000_000, max_unreadable=3, bits=8,
        channels=3, num_shards=4,
    )  # fmt: skip


def test_info_of_shards(shards: Path, capsys: Capture) -> None:
    assert cli.main(["data", "info", str(shards), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["classes"], facts["shards"]) == (IMAGES, 3, 1)
    assert cli.main(["data", "info", str(shards)]) == 0
    text = capsys.readouterr().out
    assert f"{IMAGES}, 0 skipped" in text
    assert f"{facts['bytes_per_image']:,} bytes per image" in text
    assert "60 to 60, median 60 pixels" in text
    assert facts["fingerprint"] in text


def test_info_of_a_collection_forecasts_what_it_will_take(photos: Path, capsys: Capture) -> None:
    assert cli.main(["data", "info", str(photos), "--val-fraction", "1e-9", "--json"]) == 0
    out, told = capsys.readouterr()
    facts = json.loads(out)
    assert facts["images"] == facts["sampled_images"] == IMAGES + 1
    assert facts["unreadable_sampled_images"] == 1
    stored = sum(path.stat().st_size for path in photos.rglob("*.jpg")) - 3
    assert [each["max_resolution_pixels"] for each in facts["written"]] == [256, 384, 512]
    for forecast in facts["written"]:
        assert forecast["bytes"] == pytest.approx(stored, rel=0.01)
        assert 0 < forecast["hours_on_one_core"] < 1
    first, *steps = told.splitlines()
    assert first == f"info starts: looking at {photos}"
    assert steps[0].endswith("%  listing the images")
    assert steps[-1] == "   83%  writing a few at 512 px"
    assert cli.main(["data", "info", str(photos), "--val-fraction", "1e-9"]) == 0
    assert f"1 of {IMAGES + 1} looked at" in capsys.readouterr().out


def test_info_says_what_is_odd_and_takes_the_columns(tmp_path: Path, capsys: Capture) -> None:
    file = io.BytesIO()
    Image.fromarray(Pictures(((50, 60),)).image(0)).save(file, "jpeg")
    columns = {"img": [file.getvalue()], "fine_label": ["pug"], "coarse_label": ["dog"]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    words = ["data", "info", str(tmp_path)]
    assert cli.main(words) == 1
    assert "choose one by --label-column (data.label_column)" in capsys.readouterr().err
    words += ["--image-column", "img", "--label-column", "coarse_label"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert cli.main([*words[:3], *words[5:]]) == 0
    assert "notes  " + f"{tmp_path}: images are read from column img" in capsys.readouterr().out


def test_check_says_what_is_wrong_and_fails(shards: Path, capsys: Capture) -> None:
    words = ["data", "verify", str(shards)]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{shards}: every byte is as it was written\n"
    (path,) = shards.glob("*.beton")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    assert cli.main(words) == 1
    assert capsys.readouterr().out.startswith(f"{path} has changed since it was written")
    assert cli.main([*words, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["info", "nowhere"], "data folder nowhere does not exist"),
        (["verify", "nowhere"], "nowhere does not exist: expected a folder written"),
        (["write", "nowhere", "there"], "data folder nowhere does not exist"),
        (["write", "x", "y", "--jpeg-quality", "0"], "jpeg_quality = 0; expected 1 to 100"),
        (["write", "x", "y", "--classes", "none.txt"], "class list none.txt cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(words: list[str], error: str, capsys: Capture) -> None:
    assert cli.main(["data", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {error}")


@dataclass(frozen=True)
class Lethal(Pictures):
    """Pictures of which the last one kills the process that reads it, as often as told.

    The process `spared` is the one that runs the tests.
    """

    marker: Path = Path()
    times: int = 0
    spared: int = 0

    def image(self, index: int) -> RGBImage:
        if index == len(self.shapes) - 1 and os.getpid() != self.spared:
            with self.marker.open("a") as file:
                file.write("x")
            if self.marker.stat().st_size <= self.times:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)

    def fingerprint(self) -> str:
        return repr(self.shapes)


@pytest.mark.slow
def test_a_writer_that_dies_is_started_once_more_and_then_an_error(tmp_path: Path) -> None:
    settings = WriteSettings(mode="raw", num_shards=3)
    shapes = ((20, 30),) * 40
    straight = write(Pictures(shapes), tmp_path / "straight", settings)
    with Cluster(Placement(num_workers=2)) as cluster:
        once = Lethal(shapes, marker=tmp_path / "once", times=1, spared=os.getpid())
        folder = tmp_path / "shards"
        manifest = write_collection(
            once, "pictures", folder, Selection(), settings, run=cluster.map
        )
        assert manifest.shards == straight.shards
        assert (tmp_path / "once").read_text() == "xx"
        always = Lethal(shapes, marker=tmp_path / "always", times=1000, spared=os.getpid())
        with pytest.raises(ClusterError, match=r"died twice on the same work.*train-0000"):
            write_collection(
                always, "pictures", tmp_path / "never", Selection(), settings, run=cluster.map
            )
    assert (tmp_path / "always").read_text() == "xx"
    kept = {path: path.stat().st_ino for path in (tmp_path / "never").glob("*.beton")}
    assert 0 < len(kept) < 3
    later = write_collection(
        replace(always, times=0),
        "pictures",
        tmp_path / "never",
        Selection(),
        settings,
        note=pytest.fail,
    )
    assert later.shards == straight.shards
    assert {path: path.stat().st_ino for path in kept} == kept
