"""What the policy keeps and what it may never remove, by hand and on random histories."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import durable
from cluster.checkpoint import store
from cluster.checkpoint.publishing import publish
from cluster.checkpoint.retention import KeepPolicy, prune
from cluster.checkpoint.store import MANIFEST, Checkpoint, steps
from tests.cluster.checkpoint.fragments import is_good


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_disks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def save(root: Path, step: int, metrics: Any = None) -> Path:
    notes = {} if metrics is None else {"metrics": metrics}
    content = f"step {step}".encode()
    return publish(
        root, step, lambda folder: {"w": durable.write(folder / "w", [content])}, notes
    ).path


def kept(root: Path) -> list[int]:
    return [store.step_of(path) for path in steps(root)]


def tear(path: Path) -> None:
    os.truncate(path / "w", 3)


def rot(path: Path) -> None:
    (path / "w").write_bytes((path / "w").read_bytes().upper())


def lose(path: Path) -> None:
    (path / MANIFEST).unlink()


DAMAGES = {"torn": tear, "rotten": rot, "lost": lose}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (KeepPolicy(), [500, 600]),
        (KeepPolicy(last=1), [600]),
        (KeepPolicy(last=9), [100, 200, 300, 400, 500, 600]),
        (KeepPolicy(last=1, every=200), [200, 400, 600]),
        (KeepPolicy(last=2, every=1000), [500, 600]),
        (KeepPolicy(last=1, best="top1"), [200, 600]),
        (KeepPolicy(last=1, best="loss", smaller_is_better=True), [400, 600]),
        (KeepPolicy(last=1, every=300, best="top1"), [200, 300, 600]),
        (KeepPolicy(last=1, best="unheard of"), [600]),
        (KeepPolicy(last=1, reach=1), [500, 600]),
        (KeepPolicy(last=1, reach=250), [300, 500, 600]),
        (KeepPolicy(last=2, reach=100), [500, 600]),
        (KeepPolicy(last=1, reach=1000), [100, 600]),
    ],
)
def test_the_last_every_and_the_best_stay(
    policy: KeepPolicy, expected: list[int], tmp_path: Path
) -> None:
    for step, top1, loss in [
        (100, 0.1, 2.0),
        (200, 0.8, 1.9),
        (300, 0.3, 1.2),
        (400, 0.4, 1.1),
        (500, 0.5, 1.3),
        (600, 0.6, 1.4),
    ]:
        save(tmp_path, step, {"top1": top1, "loss": loss})
        prune(tmp_path, policy)
    assert kept(tmp_path) == expected
    prune(tmp_path, policy)
    assert kept(tmp_path) == expected
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("reach", [1, 70, 100, 999])
def test_there_is_always_one_to_go_back_to(reach: int, tmp_path: Path) -> None:
    """Not much farther back than asked for, and by few that are kept for it."""
    for step in range(10, 500, 10):
        save(tmp_path, step)
        prune(tmp_path, KeepPolicy(reach=reach))
        there = kept(tmp_path)
        assert len(there) <= 4
        if step >= reach + 10:
            assert any(step - 2 * reach - 10 <= each <= step - reach for each in there)


def test_of_equals_the_newest_is_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, {"top1": 0.5 if step < 3 else 0.1})
    prune(tmp_path, KeepPolicy(last=1, best="top1"))
    assert kept(tmp_path) == [2, 3]


@pytest.mark.parametrize("odd", [None, {}, {"top1": None}, {"top1": math.nan}, {"top1": "0.9"}])
def test_what_has_no_number_is_not_the_best(odd: Any, tmp_path: Path) -> None:
    for step, metrics in enumerate([{"top1": 0.2}, odd, {"top1": 0.1}, odd], start=1):
        save(tmp_path, step, metrics)
    prune(tmp_path, KeepPolicy(last=1, best="top1"))
    assert kept(tmp_path) == [1, 4]


@pytest.mark.parametrize(("last", "every"), [(0, None), (-1, None), (2, 0)])
def test_a_policy_that_keeps_nothing_is_refused(last: int, every: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1 checkpoint must stay"):
        KeepPolicy(last=last, every=every)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newer_ones_do_not_stand_for_the_only_good_one(damage: str, tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    for path in paths[1:]:
        DAMAGES[damage](path)
    prune(tmp_path, KeepPolicy(last=1))
    assert kept(tmp_path) == [1, 2, 3]
    save(tmp_path, 4)
    prune(tmp_path, KeepPolicy(last=1))
    # Only what cannot be told from a good one by its sizes is removed, once a good one is newer.
    assert kept(tmp_path) == ([4] if damage == "rotten" else [2, 3, 4])


def test_nothing_is_read_when_nothing_is_to_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    read: list[str] = []
    monkeypatch.setattr(durable, "sha256", lambda path: read.append(path.parent.name))
    prune(tmp_path, KeepPolicy(last=1))
    assert read == []


Move = tuple[int, str | None, float | None]
HISTORIES = st.lists(
    st.tuples(
        st.integers(1, 5),  # steps further
        st.sampled_from([None, None, *DAMAGES]),
        st.none() | st.sampled_from([0.1, 0.2, 0.3]),
    ),
    min_size=1,
    max_size=9,
)
POLICIES = st.builds(
    KeepPolicy,
    last=st.integers(1, 3),
    every=st.none() | st.integers(1, 6),
    best=st.none() | st.just("top1"),
    smaller_is_better=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(history=HISTORIES, policy=POLICIES)
def test_any_history(
    history: list[Move], policy: KeepPolicy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Saves, some of them damaged before the pruning: what is gone was stood for."""
    root, step = tmp_path_factory.mktemp("history"), 0
    scores: dict[int, float] = {}
    for further, damage, score in history:
        step += further
        path = save(root, step, None if score is None else {"top1": score})
        if score is not None:
            scores[step] = score
        if damage is not None:
            DAMAGES[damage](path)
        before = {store.step_of(path): is_good(path) for path in steps(root)}
        visibly_bad = {store.step_of(path) for path in steps(root) if not plausible(path)}
        good = [number for number, fine in before.items() if fine]
        prune(root, policy)
        after = set(kept(root))

        gone = before.keys() - after
        assert not gone & visibly_bad, "evidence is not removed"
        assert set(good[-1:]) <= after, "the newest good one stays"
        assert not gone or max(gone) < good[-1], "a good one is newer than all that is gone"
        if policy.every is not None:
            assert all(number % policy.every for number in gone)
        alternatives = [number for number in before if number not in visibly_bad]
        assert len(after - visibly_bad) >= min(policy.last, len(alternatives))
        marked = [number for number in alternatives if number in scores]
        if policy.best and marked and not gone.isdisjoint(marked):
            sign = -1 if policy.smaller_is_better else 1
            assert max(sign * scores[n] for n in marked) in {
                sign * scores[n] for n in after & scores.keys()
            }
        if damage is None:
            assert len(after - visibly_bad) <= policy.last + bool(policy.best) + sum(
                policy.every is not None and number % policy.every == 0 for number in after
            )


def plausible(path: Path) -> bool:
    """Whether it looks good without its contents being read."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except OSError:
        return False
    return all((path / name).stat().st_size == entry["bytes"] for name, entry in files.items())


def test_the_policy_is_asked_from_the_oldest_to_the_newest() -> None:
    made = [Checkpoint(Path(str(step)), step, {}) for step in (1, 2, 3)]
    assert KeepPolicy(last=1).chosen(made) == {Path("3")}
    assert KeepPolicy(last=1).chosen([]) == set()
