"""The same photographs in every form that they are stored in, read by our loader."""

from pathlib import Path

import pytest

from pipelines.bench.data import photographs, storage
from pipelines.bench.data.epochs import Epoch
from pipelines.bench.data.photographs import Photographs, prepare


@pytest.mark.slow
def test_forms_are_compared_by_speed_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "MADE_UP", 4)
    prepared = prepare(tmp_path / "photographs", None, 4)
    started: list[Photographs] = []

    def ours(stored: Photographs) -> Epoch:
        started.append(stored)
        return lambda number: stored.epoch

    def rates_of(contenders: dict[str, object], turns: int, seconds: float) -> object:
        for start in contenders.values():
            assert callable(start)
            start()
        return {name: [200.0 * (n + 1)] * turns for n, name in enumerate(contenders)}

    monkeypatch.setattr(storage, "ours", ours)
    monkeypatch.setattr(storage, "rates_of", rates_of)
    found = storage.measure_storage(prepared, tmp_path, turns=2, seconds=0.1)
    assert list(found) == ["jpg, 500 px", "jpg, 384 px", "jpg, 256 px", "raw, 256 px"]
    assert [figures["of_first"] for figures in found.values()] == [1, 2, 3, 4]
    assert found["jpg, 500 px"]["images_per_second_per_core"] == 100
    # Each in shards of its own, of the size it says.
    assert len({stored.shards for stored in started}) == 4
    assert found["raw, 256 px"]["bytes_per_image"] >= 256 * 192 * 3
    storage.show(found)
