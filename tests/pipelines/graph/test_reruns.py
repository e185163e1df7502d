"""Doing again what is done, interrupted and beside other configurations; nothing is lost."""

import pytest

from tests.pipelines.graph.kitchen import Kitchen, only, snapshot


def test_rerun_redoes_what_is_behind_and_keeps_what_was(kitchen: Kitchen) -> None:
    kitchen.run()
    old = snapshot(kitchen.root / "stages" / "bread").values()
    after = kitchen.run(rerun="bread")
    assert kitchen.runs == ["bread", "toast"]
    assert after["bread"] == after["toast"] == ("run", "it was asked for again")
    kept = only(kitchen.root, "stages/bread/replaced/*")
    assert list(snapshot(kept).values()) == list(old)
    assert kitchen.said[0] == f"bread: what was done before is kept in {kept}"
    # It is over: nothing is done again by itself, and asked for it is done once more.
    assert {status for status, _ in kitchen.run().values()} == {"done"}
    kitchen.run(rerun="bread")
    assert kitchen.runs == ["bread", "toast"]
    assert len(list(kitchen.root.glob("stages/bread/replaced/*"))) == 2


@pytest.mark.parametrize("again", ["bread", None])
@pytest.mark.parametrize(("fails", "left"), [("bread", ["bread", "toast"]), ("toast", ["toast"])])
def test_a_rerun_that_was_interrupted_goes_on(
    kitchen: Kitchen, fails: str, left: list[str], again: str | None
) -> None:
    kitchen.run()
    kitchen.fail_in = fails
    with pytest.raises(OSError, match="no gas"):
        kitchen.run(rerun="bread")
    half_done = only(kitchen.root, f"stages/{fails}/*/steps").read_text()
    kitchen.fail_in = ""
    # By the same command or by a plain one; toast is redone although its input came out the same.
    after = kitchen.run(rerun=again)
    assert kitchen.runs == left
    assert after[fails] == ("resumed", "it was left half done")
    assert only(kitchen.root, f"stages/{fails}/*/steps").read_text() == half_done + "step\n"
    assert len(list(kitchen.root.glob("stages/*/replaced/*"))) == 2
    assert not list(kitchen.root.glob("stages/*/*.rerun-*.json"))


def test_a_rerun_touches_no_other_configuration(kitchen: Kitchen) -> None:
    kitchen.run()
    other = snapshot(kitchen.root)
    kitchen.flour = 2
    kitchen.run()
    kitchen.run(rerun="bread")
    assert kitchen.runs == ["bread", "toast"]
    now = snapshot(kitchen.root)
    assert other == {path: now[path] for path in other}
    kitchen.flour = 1
    assert {status for status, _ in kitchen.run().values()} == {"done"}


def test_others_that_share_the_beginning_of_an_interrupted_rerun_are_not_drawn_in(
    kitchen: Kitchen,
) -> None:
    """Two toasts of one bread; the rerun from the bread on was asked for of the first."""
    kitchen.run()
    kitchen.jam = True
    kitchen.run()
    kitchen.jam, kitchen.fail_in = False, "toast"
    with pytest.raises(OSError, match="no gas"):
        kitchen.run(rerun="bread")
    assert kitchen.runs == ["bread", "toast"]
    kitchen.jam, kitchen.fail_in = True, ""
    assert {status for status, _ in kitchen.run().values()} == {"done"}
    kitchen.jam = False
    kitchen.run(rerun="bread")
    assert kitchen.runs == ["toast"]
    # Asked for of the second, it is done again for it.
    kitchen.jam = True
    kitchen.run(rerun="bread")
    assert kitchen.runs == ["bread", "toast"]


def test_a_rerun_does_not_throw_a_first_half_done_run_away(kitchen: Kitchen) -> None:
    kitchen.fail_in = "bread"
    with pytest.raises(OSError, match="no gas"):
        kitchen.run()
    kitchen.fail_in = ""
    assert kitchen.run(rerun="bread")["bread"] == ("resumed", "it was left half done")
    assert only(kitchen.root, "stages/bread/*/steps").read_text() == "step\nstep\n"


def test_what_was_replaced_can_be_put_back(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.run(rerun="toast")
    (new,) = (path for path in (kitchen.root / "stages/toast").iterdir() if path.name != "replaced")
    new.rename(new.with_name("the new toast"))
    assert kitchen.pipeline().survey().missing == {"toast": "its folder is not where it was"}
    only(kitchen.root, "stages/toast/replaced/*").rename(new)
    assert {status for status, _ in kitchen.run().values()} == {"done"}


def test_a_rerun_of_what_is_not_there(kitchen: Kitchen) -> None:
    with pytest.raises(ValueError, match="unknown stage 'jam'; there are bread, butter, toast"):
        kitchen.run(rerun="jam")
    assert not (kitchen.root / "stages").exists()
