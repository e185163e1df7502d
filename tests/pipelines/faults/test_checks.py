"""Each check of a disturbed run passes on a whole one, and fails on the smallest wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convnextv2.data.order.global_order import GlobalOrder, part_of
from pipelines.faults import history
from pipelines.faults.checks import Check, all_checks
from pipelines.faults.disturb import Disturbed
from pipelines.faults.history import used_once
from pipelines.graph.complete import hash_files, mark_complete
from pipelines.runtime.events import EVENTS_FILE, End, Start, line_of
from pipelines.training.anomalies.spikes import FILE, Window, Windows
from pipelines.training.data.sample_log import FOLDER, digest

ORDER = GlobalOrder(10, 4, seed=3)
TOTAL = 5
"""Two batches an epoch: two epochs and a half."""


@pytest.fixture(autouse=True)
def _order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "order_of", lambda stage, start: ORDER)


def note(stage: Path, generation: int, workers: int, steps: range) -> None:
    """What the workers of a group have noted."""
    (stage / FOLDER).mkdir(exist_ok=True)
    for rank in range(workers):
        lines: list[dict[str, object]] = [{"settings": {}}]
        for step in steps:
            part = part_of(ORDER.batch(*divmod(step, 2)), rank, workers)
            lines.append({"step": step, "samples": len(part), "digest": digest(part)})
        path = stage / FOLDER / f"generation-{generation}-rank-{rank}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def trained(run_dir: Path, groups: list[tuple[int, range]], value: float = 1.0) -> Path:
    """A finished run with these groups: workers, and the steps that they did."""
    stage = run_dir / "stages" / "pretrain" / "key"
    stage.mkdir(parents=True)
    events = []
    for generation, (workers, steps) in enumerate(groups, 1):
        begun = {"step": steps.start, "workers": workers, "total": TOTAL}
        events.append(line_of(Start(**begun, generation=generation)))  # type: ignore[arg-type]
        note(stage, generation, workers, steps)
    events.append(line_of(End(step=TOTAL, generation=len(groups))))
    (stage / EVENTS_FILE).write_text("\n".join(events) + "\n")
    save_file({"weight": torch.tensor([2.0, value])}, stage / "fcmae.safetensors")
    mark_complete(stage, hash_files(stage, "fcmae.safetensors"), {}, 1.0, [])
    return stage


def checks(run_dir: Path, straight: Path, disturbed: Disturbed) -> dict[str, Check]:
    found = all_checks([], [], disturbed, run_dir, straight, tolerance=1e-3)
    return {check.name: check for check in found}


def failed(run_dir: Path, straight: Path, disturbed: Disturbed) -> dict[str, str]:
    found = checks(run_dir, straight, disturbed)
    return {name: check.words for name, check in found.items() if not check.passed}


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    trained(tmp_path / "straight", [(2, range(5))])
    return tmp_path / "straight"


WHOLE = Disturbed(0, left=[])


def test_a_whole_run_passes(straight: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # The second group began again after step 2: what the first did after it does not count.
    trained(run_dir, [(2, range(4)), (2, range(2, 5))])
    assert failed(run_dir, straight, WHOLE) == {}
    words = checks(run_dir, straight, WHOLE)
    assert words["weights"].words == "equal the undisturbed run's, bit by bit"
    assert "exactly once (20 in all)" in words["samples"].words


def leave_out(stage: Path, first: int, end: int) -> None:
    window = Window(first=first, end=end, step=first + 1, loss=9.0, median=1.0)
    (stage / FILE).write_text(json.dumps(Windows((window,)).as_notes()))


def test_both_runs_have_left_out_the_same_steps(tmp_path: Path) -> None:
    for name, end in {"run": 4, "same": 4, "other": 3}.items():
        stage = trained(tmp_path / name, [(2, range(5))])
        leave_out(stage, 2, end)
        for path in (stage / FOLDER).iterdir():
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(lines[: 2 + 1] + lines[end + 1 :]))
    assert failed(tmp_path / "run", tmp_path / "same", WHOLE) == {}
    samples = checks(tmp_path / "run", tmp_path / "same", WHOLE)["samples"].words
    assert "(12 in all), but for steps 3 to 4, left out" in samples
    assert failed(tmp_path / "run", tmp_path / "other", WHOLE) == {
        "weights": "the two runs have left out different steps around spikes of the loss"
    }


def test_bits_count_unless_the_number_of_workers_has_changed(
    straight: Path, tmp_path: Path
) -> None:
    for name, groups in {
        "same": [(2, range(5))],
        "other": [(2, range(3)), (1, range(2, 5))],
    }.items():
        trained(tmp_path / name, groups, value=1.0001)
    assert "differs by up to 5.0e-05" in failed(tmp_path / "same", straight, WHOLE)["weights"]
    assert failed(tmp_path / "other", straight, WHOLE) == {}
    trained(tmp_path / "far", [(1, range(5))], value=1.1)
    assert "differs by up to 5.0e-02" in failed(tmp_path / "far", straight, WHOLE)["weights"]


def remove_a_worker(stage: Path) -> None:
    (stage / FOLDER / "generation-1-rank-1.jsonl").unlink()


def remove_a_step(stage: Path) -> None:
    path = stage / FOLDER / "generation-1-rank-1.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def repeat_samples(stage: Path) -> None:
    first = (stage / FOLDER / "generation-1-rank-0.jsonl").read_text()
    (stage / FOLDER / "generation-1-rank-1.jsonl").write_text(first)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (remove_a_worker, "the workers have not noted their samples"),
        (remove_a_step, "not all workers have noted the samples of step 5"),
        (repeat_samples, "step 1 was not trained on the samples of its batch"),
    ],
)
def test_samples(harm: Callable[[Path], None], words: str, straight: Path, tmp_path: Path) -> None:
    stage = trained(tmp_path / "run", [(2, range(5))])
    harm(stage)
    assert words in failed(tmp_path / "run", straight, WHOLE)["samples"]


def test_an_order_that_repeats_a_sample_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = trained(tmp_path / "run", [(2, range(5))])
    same = np.array([1, 2, 3, 4], np.uint64)
    monkeypatch.setattr(GlobalOrder, "batch", lambda order, epoch, number: same)
    _, problems = used_once(stage)
    assert problems[0] == "epoch 0 has 4 samples, not 8"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (".fcmae.safetensors.partial", b"half", "left over"),
        ("metrics.jsonl", b'{"kind": "sta', "has a line that is torn"),
        ("fcmae.safetensors", b"other", "fcmae.safetensors: has 5 bytes instead of"),
        ("checkpoints/step-00000004/rank-00000.safetensors", b"", "no readable MANIFEST.json"),
    ],
)
def test_files(name: str, content: bytes, words: str, straight: Path, tmp_path: Path) -> None:
    stage = trained(tmp_path / "run", [(2, range(5))])
    path = stage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if name == "metrics.jsonl" else "wb") as file:
        file.write(content)
    events = stage / EVENTS_FILE
    if name == "metrics.jsonl":
        # The reader of events leaves an incomplete last line out.
        assert len(events.read_text().splitlines()) == 3
    if name == "fcmae.safetensors":
        shutil.copy(path, straight / "stages/pretrain/key/fcmae.safetensors")
    assert words in failed(tmp_path / "run", straight, WHOLE)["files"]


def test_how_it_ended_and_what_it_left(straight: Path) -> None:
    assert failed(straight, straight, Disturbed(3, left=[])) == {"run": "it ended with exit code 3"}
    assert "took too long" in failed(straight, straight, Disturbed(None, left=[]))["run"]
    left = failed(straight, straight, Disturbed(0, left=["python -m cluster.workers.child"]))
    assert left == {"processes": "still there: python -m cluster.workers.child"}
    elsewhere = checks(straight, straight, Disturbed(0, left=None))["processes"]
    assert elsewhere.passed is None
