"""`make bench-data` on a few small images: every contender reads all of them, figures are there."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnextv2.data.collection import DataError
from convnextv2.data.shards.manifest import read_manifest
from convnextv2.data.shards.mapped import open_shards
from pipelines.bench.data import __main__ as bench
from pipelines.bench.data import startup, writing
from pipelines.bench.data.epochs import Epoch, rates_of
from pipelines.bench.data.loaders import CONTENDERS
from pipelines.bench.data.photographs import SIDE, Photographs, prepare
from pipelines.bench.data.pixels import compare
from pipelines.bench.data.tables import summary
from tests.pipelines.bench.made_up_epochs import failing, steady

pytestmark = pytest.mark.slow
COUNT, EPOCH = 8, 64  # Whole batches: timm drops what is less.


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    noise = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = Image.fromarray(noise.integers(0, 256, (6, 8, 3), np.uint8))
        size = (600, 520) if number else (90, 70)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def photographs(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    return prepare(tmp_path_factory.mktemp("prepared") / "photographs", given, EPOCH)


def test_all_shapes_hold_the_same_jpegs(photographs: Photographs) -> None:
    contents = sorted(photographs.contents())
    assert len(contents) == photographs.count == COUNT
    assert photographs.epoch == EPOCH
    sizes = [Image.open(io.BytesIO(content)).size for content in contents]
    assert max(max(size) for size in sizes) == SIDE
    manifest = read_manifest(photographs.shards)
    shards = open_shards(photographs.shards, manifest)
    begins = [int(begin) for begin in shards.records(0)["f0"]["data_ptr"]]
    stored = (photographs.shards / manifest.shards[0].name).read_bytes()
    assert sorted(map(stored.find, contents)) == begins
    packed = []
    for path in photographs.tars:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                file = tar.extractfile(member)
                if file is not None and member.name.endswith(".jpg"):
                    packed.append(file.read())
    assert sorted(packed) == contents


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_serves_every_image_in_every_epoch(photographs: Photographs, name: str) -> None:
    run = CONTENDERS[name](photographs)
    assert [run(0), run(1)] == [photographs.epoch] * 2


def test_reduced_decoding_changes_pixels_where_crops_are_large_and_exact_none(
    photographs: Photographs,
) -> None:
    assert compare(photographs, 32, "exact").affected == 0
    reduced = compare(photographs, 32, "reduced")
    assert 0.5 < reduced.affected <= 1
    assert 0 < reduced.mean <= reduced.largest
    assert compare(photographs, SIDE, "reduced").affected == 0


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.jpg"):
        prepare(tmp_path / "prepared", tmp_path, EPOCH)


def test_turns_are_counted_for_everyone_and_a_failure_names_whose_it_was() -> None:
    contenders: dict[str, Callable[[], Epoch]] = {
        "one": partial(steady, 10),
        "two": partial(steady, 20),
    }
    rates = rates_of(contenders, 3, 0)
    assert {name: len(found) for name, found in rates.items()} == {"one": 3, "two": 3}
    with pytest.raises(RuntimeError, match="bad ended early"):
        rates_of({"one": partial(steady, 10), "bad": failing}, 1, 0)


def test_ratios_are_taken_turn_by_turn() -> None:
    rates = {"ours": [10.0, 200.0, 30.0], "theirs": [5.0, 50.0, 10.0]}
    rows = summary(rates, {"of_theirs": "theirs", "ours_is_faster_by": "ours"})
    assert rows["ours"] == {
        "median": 30, "lowest": 10, "highest": 200, "of_theirs": 3, "ours_is_faster_by": 1,
    }  # fmt: skip
    assert rows["theirs"]["ours_is_faster_by"] == pytest.approx(3)


@pytest.mark.soak
def test_the_command_writes_every_figure(
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The others' start-up takes most of the time, and they are run above.
    chosen = {name: CONTENDERS[name] for name in (bench.BARE, bench.REFERENCE)}
    monkeypatch.setattr(bench, "CONTENDERS", chosen)
    monkeypatch.setattr(bench, "DECODES", ("reduced",))
    monkeypatch.setattr(startup, "KINDS", ("ours",))
    monkeypatch.setattr(writing, "AT_LEAST", COUNT)
    output = tmp_path / "figures" / "bench-data.json"
    words = ["--photos", given, "--turns", 1, "--seconds", 0, "--epoch", EPOCH]
    words += ["--samples", 40_000, "--output", output]
    monkeypatch.setattr(sys, "argv", ["bench-data", *map(str, words)])
    bench.main()
    results = json.loads(output.read_text())
    assert set(results["loaders"]) == set(chosen)
    assert results["loaders"][bench.BARE]["of_bare"] == 1
    assert set(results["decode"]["speed"]) == {"224 reduced", "112 reduced"}
    assert set(results["writing"]) == {"shrunk to 384 px", "kept byte for byte"}
    assert results["startup"]["ours"]["first_batch"] > 0
    assert results["memory"]["ours"]["private"] < 40 < results["memory"]["ffcv"]["private"]
    printed = capsys.readouterr().out
    assert f"{COUNT} photographs" in printed
    assert all(name.split(",")[0] in printed for name in (*chosen, "kept byte for byte"))
