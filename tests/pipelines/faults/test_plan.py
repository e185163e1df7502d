"""Fault plans: what is wrong with one is said at once, and the same seed draws the same faults."""

from pathlib import Path

import pytest
import yaml

from pipelines import cli
from pipelines.config.resolve import ConfigError
from pipelines.faults import problems as module
from pipelines.faults.kinds import ANYWHERE, KINDS
from pipelines.faults.reading import plan_file, read_plan, shipped_plans
from pipelines.faults.schedule import schedule

LOCAL = {"cluster": {"local": {"nodes": 3}}}
KILL = {"when": "step 5", "what": "kill worker"}


def written(folder: Path, plan: dict[str, object]) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def problems(folder: Path, plan: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_plan(written(folder, plan))
    assert str(folder) in caught.value.about
    return caught.value.problems


def test_everything_that_is_wrong_with_a_plan_is_said_at_once(tmp_path: Path) -> None:
    faults = [
        {"when": "midnight", "what": "kill worker"},
        {"when": "step 5", "what": "kill wroker", "where": "here"},
        {"when": "step 5", "often": 2},
    ]
    found = problems(tmp_path, {**LOCAL, "faults": faults, "sed": 1})
    assert [problem.partition(":")[0] for problem in found] == [
        "faults.0.when",
        "faults.1.what",
        "faults.1.where",
        "faults.2.what",
        "faults.2.often",
        "sed",
    ]
    assert "step N, evaluate N" in found[0]
    assert "did you mean 'kill worker'?" in found[1]
    assert found[4] == "faults.2.often: unknown key; there are when, what, where"
    assert found[5] == "sed: unknown key; did you mean 'seed'?"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"nodes": 2}, "nodes: unknown key; did you mean 'cluster.local.nodes'?"),
        (
            {"cluster": {"local": {"nodes": 2, "replaces": True}}},
            "cluster.local.replaces: unknown key; did you mean 'replace'?",
        ),
        (
            {"faults": [KILL, {**KILL, "were": "rank 1"}]},
            "faults.1.were: unknown key; did you mean 'where'?",
        ),
        (
            {"random": {"count": 1, "every_steps": 9, "kinds": ["raise"], "kind": "hang"}},
            "random.kind: unknown key; did you mean 'kinds'?",
        ),
        (
            {"random": {"count": 1, "every_steps": 9, "kinds": ["hang", "cut-link"]}},
            "random.kinds.1: no such kind; did you mean 'cut link'?, got 'cut-link'",
        ),
    ],
)
def test_an_unknown_key_or_kind_is_told_with_the_nearest(
    plan: dict[str, object], words: str, tmp_path: Path
) -> None:
    assert problems(tmp_path, plan) == [words]


def test_links_are_refused_where_there_can_be_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "obstacle", lambda: "run it as root")
    faults = [KILL, {"when": "step 5", "what": "slow link"}, {**KILL, "where": "rank 7"}]
    random = {"count": 1, "every_steps": 9, "kinds": ["hang", "cut link"]}
    assert problems(tmp_path, {**LOCAL, "faults": faults, "random": random}) == [
        "faults.1.what: 'slow link' needs nodes with a network of their own: run it as root",
        "random.kinds.1: 'cut link' needs nodes with a network of their own: run it as root",
        "faults.2.where: there are no more than 2 workers; rank 0 to 1 would work",
    ]
    plan, _ = read_plan(written(tmp_path, {**LOCAL, "faults": [KILL]}))
    assert not plan.needs_network


def test_a_spike_that_nobody_would_notice_is_refused(tmp_path: Path) -> None:
    plan: dict[str, object] = {
        "run": {"set": ["pretrain.spike_factor=null"]},
        "faults": [{"when": "checkpoint 12", "what": "spike"}],
        "random": {"count": 1, "every_steps": 19, "kinds": ["spike"]},
    }
    assert [problem.partition(":")[2] for problem in problems(tmp_path, plan)] == [
        " 'spike' befalls a step: step 12 would work",
        " pretrain.spike_factor=10 in run.set would work",
        " a loss is compared with 20 before it; step 20 would work",
        " the loss of a 'spike' is compared with 20 before it; 20 would work",
    ]


def test_what_neither_run_nor_cluster_can_do_is_said_at_once(tmp_path: Path) -> None:
    faults = [
        {"when": "step 5", "what": "freeze raylet"},
        {"when": "step 5", "what": "kill worker", "where": "rank 2"},
        {"when": "step 5", "what": "kill worker", "where": "node-2"},
        {"when": "evaluate 5", "what": "raise"},
        {"when": "checkpoint 5", "what": "nan"},
        {"when": "step 5", "what": "flip weight"},
    ]
    plan = {
        "cluster": {"address": "ray-head:6379"},
        "run": {"set": ["cluster.zero.stage=3"]},
        "faults": faults,
        "random": {"count": 2, "every_steps": 3, "kinds": ["raise", "add node"]},
    }
    found = problems(tmp_path, plan)
    assert [problem.partition(":")[0] for problem in found] == [
        "faults.0.what",
        "random.kinds.1",
        "faults.2.where",
        "faults.4.when",
        "faults.5.when",
        "faults.1.where",
        "faults.3.when",
        "'flip weight' needs a run that compares the weights of workers",
    ]
    assert ", ".join(ANYWHERE) in found[0]
    assert "rank 0 to 1 would work" in found[5]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({**LOCAL}, "faults: there are none"),
        ({"cluster": {}, "faults": [KILL]}, "either local"),
        ({"cluster": {**LOCAL["cluster"], "address": "auto"}, "faults": [KILL]}, "either local"),
        ({"cluster": {"local": {"nodes": 1}}, "faults": [KILL]}, "no room for 2 workers; 2 would"),
        ({"run": {"preset": "demo"}, "faults": [KILL]}, "no images; data.source=DIR"),
        ({"run": {"preset": "dmo"}, "faults": [KILL]}, "run: unknown preset 'dmo'"),
        ({"run": {"set": ["pretrain.seed=1"]}, "faults": [KILL]}, "run: unknown key"),
        ({"run": {"stage": "finetune"}, "faults": [KILL]}, "the run has no finetune"),
        (
            {"faults": [{**KILL, "what": "freeze node", "where": "node-9"}]},
            "there is no node-9; the nodes are node-2, node-3, node-4",
        ),
        (
            {
                "cluster": {"local": {"nodes": 2, "replace": False}},
                "faults": [{**KILL, "what": "kill raylet"}] * 2,
            },
            "all 2 may be lost; cluster.local.replace=true, or 3 nodes",
        ),
    ],
)
def test_a_plan_that_cannot_be_done_is_refused(
    plan: dict[str, object], words: str, tmp_path: Path
) -> None:
    [problem] = problems(tmp_path, plan)
    assert words in problem


@pytest.mark.usefixtures("_own_signals")
def test_the_command_says_it_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {**LOCAL, "faults": [{"when": "step 1", "what": "nothing"}]})
    folder = tmp_path / "run"
    words = ["faults", "run", "--plan", str(path), "--run-dir", str(folder)]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: 1 problem in the fault plan {path}\n  faults.0.what: no such")
    assert not folder.exists()
    written(tmp_path, {**LOCAL, "faults": [KILL]})
    (folder / "old").mkdir(parents=True)
    assert cli.main(words) == 1
    assert "is not empty; a trial needs a new folder" in capsys.readouterr().err
    assert cli.main([*words[:3], str(tmp_path / "gone.yaml")]) == 1
    assert f"--plan {tmp_path / 'gone.yaml'} cannot be read" in capsys.readouterr().err
    assert cli.main([*words[:3], "qick"]) == 1
    said = "--plan qick is neither a file nor a shipped plan; did you mean 'quick'?"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_plans())
def test_shipped_plans_are_good(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["faults", "run", "--help"])
    assert name in capsys.readouterr().out
    plan, config = read_plan(plan_file(Path(name)))
    assert config.recipes()[plan.run.section].duration
    assert plan.faults or plan.random


def test_the_soak_has_every_kind_and_ends_after_its_last_fault() -> None:
    plan, config = read_plan(plan_file(Path("soak")))
    assert config.pretrain is not None
    faults = schedule(plan, 2, Path("/"))
    assert len(faults) == 30
    assert {fault.what for fault in faults} == set(plan.random.kinds if plan.random else ())
    links = {name for name, kind in KINDS.items() if kind.link is not None}
    assert {*KINDS} - {fault.what for fault in faults} == {"add node", "kill driver", *links}
    assert {fault.rank for fault in faults} == {0, 1}
    assert faults[-1].when.step + 20 < config.pretrain.duration.amount * 96 / 16


def test_the_seed_decides(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[str]:
        random = {"count": 8, "every_steps": 10, "kinds": ["raise", "hang", "flip weight"]}
        plan, _ = read_plan(
            written(tmp_path, {**LOCAL, "seed": seed, "random": random, "faults": [KILL]})
        )
        return [fault.line for fault in schedule(plan, 2, Path("/marks"))]

    assert drawn(1) == drawn(1) != drawn(2)
    first, *others = drawn(1)
    assert first.startswith("sigkill rank=")
    assert [line.split()[2] for line in others] == [f"step={10 * n}" for n in range(1, 9)]
    assert all(("phase=compare" in line) == line.startswith("flip") for line in others)
