"""What is done to the links of nodes, on a real network: cut, restored in time, or never."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from unittest.mock import MagicMock

import pytest

from cluster.laboratory.network import HEAD_HOST, INTERFACE, Network
from cluster.laboratory.nodes import HEAD, Laboratory, Node
from pipelines.faults import schedule
from pipelines.faults.kinds import KINDS
from pipelines.faults.nodes import Nodes
from pipelines.faults.plan import FaultPlan, Moment
from pipelines.faults.schedule import Fired, Scheduled

NODE = Node("node-2", "10.0.0.2")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    network = Network()
    network.add(HEAD, HEAD_HOST)
    network.add(NODE.name, "10.0.0.2")
    yield Laboratory(tmp_path, nodes=[NODE], network=network)
    network.close()


def befall(nodes: Nodes, what: str) -> None:
    fault = Scheduled(1, what, Moment("step", 1), 0, NODE.name, Path("/gone"))
    assert nodes.befall(fault, Fired(0, 1, 5.0, "another", 1)).node == NODE.name


@pytest.mark.parametrize("what", ["kill raylet", "freeze node", "preempt node", "cut link"])
def test_a_node_that_is_gone_is_told(what: str, tmp_path: Path) -> None:
    nodes = Nodes(Laboratory(tmp_path), FaultPlan(), tmp_path)
    fault = Scheduled(1, what, Moment("step", 1), 0, NODE.name, Path("/gone"))
    acted = nodes.befall(fault, Fired(0, 1, 5.0, "another", 1))
    assert acted.problem == "node-2 was not there any more"


def test_a_node_that_does_not_start_is_told(tmp_path: Path) -> None:
    lab = MagicMock()
    lab.add.side_effect = RuntimeError("node-3 does not start")
    nodes = Nodes(lab, FaultPlan(), tmp_path)
    nodes.befall(
        Scheduled(1, "add node", Moment("step", 1), 0, "", Path("/gone")),
        Fired(0, 1, 5.0, "another", 1),
    )
    with pytest.raises(RuntimeError, match="node-3 does not start"):
        nodes.close()


def disturbed(lab: Laboratory) -> dict[str, str]:
    """What shapes the packets to and from the node, where something does."""
    assert lab.network is not None
    found = {}
    for way, (name, device) in {"to": (HEAD, NODE.name), "from": (NODE.name, INTERFACE)}.items():
        words = [*lab.network.enter(name), "tc", "-json", "qdisc", "show", "dev", device]
        [shaped] = json.loads(subprocess.check_output(words))
        if shaped["kind"] in ("blackhole", "tbf"):
            found[way] = shaped["kind"]
    return found


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("cut link", {"to": "blackhole", "from": "blackhole"}),
        ("cut link to node", {"to": "blackhole"}),
        ("cut link from node", {"from": "blackhole"}),
    ],
)
def test_a_link_that_is_cut_for_good_stays_cut(
    what: str, expected: dict[str, str], lab: Laboratory, tmp_path: Path
) -> None:
    nodes = Nodes(lab, FaultPlan(), tmp_path)
    befall(nodes, what)
    befall(nodes, "slow link")
    assert disturbed(lab) == expected
    nodes.close()
    assert disturbed(lab) == expected


@pytest.mark.parametrize(
    ("what", "kind"),
    [("slow link", "tbf"), ("cut link for 2 s", "blackhole"), ("cut link for 20 s", "blackhole")],
)
def test_other_links_are_restored(
    what: str, kind: str, lab: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = KINDS[what].link
    assert link is not None
    assert link.seconds is not None
    shorter = {**KINDS, what: replace(KINDS[what], link=replace(link, seconds=0.3))}
    monkeypatch.setattr(schedule, "KINDS", MappingProxyType(shorter))
    nodes = Nodes(lab, FaultPlan(), tmp_path)
    befall(nodes, what)
    assert disturbed(lab) == {"to": kind, "from": kind}
    nodes.close()
    assert disturbed(lab) == {}
