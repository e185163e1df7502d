"""Ray nodes with addresses and links of their own: slow, cut for seconds, cut for good."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.laboratory.network import Network
from cluster.laboratory.nodes import Laboratory, laboratory
from cluster.laboratory.processes import wait_until
from tests.faults.test_nodes import LONG, Training, check, check_steps

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def head() -> Iterator[Laboratory]:
    with laboratory(Network()) as lab:
        yield lab


@pytest.fixture
def lab(head: Laboratory) -> Iterator[Laboratory]:
    yield head
    head.kill("driver")


def network_of(lab: Laboratory) -> Network:
    assert lab.network is not None
    return lab.network


def test_slow_and_briefly_cut_links_stop_no_training(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(15)
    victim, network = lab.at_work()[1], network_of(lab)
    network.slow_down(victim.name, kilobits=200)
    training.wait_for_step(training.done() + 30)
    assert network.delayed(victim.name) > 0
    assert training.incidents() == []
    network.cut(victim.name)
    time.sleep(1.0)
    done = training.done()
    time.sleep(2.0)
    assert training.done() == done, "the link is cut"
    network.restore(victim.name)
    training.wait_for_step(done + 30)
    training.finish()
    # A machine so busy that the network's pauses add up to the limit may begin a new group.
    assert all(incident.recovered for incident in training.incidents())
    check_steps(training, every=10)
    assert {size for _, size in training.steps()} == {2}


def test_a_node_that_is_cut_off_is_done_without_and_stops_by_itself(
    lab: Laboratory, tmp_path: Path
) -> None:
    lab.have(2)
    training = Training.start(lab, tmp_path, LONG, min_workers=1)
    training.wait_for_step(15)
    victim = lab.at_work()[1]
    network_of(lab).cut(victim.name)
    incident = training.wait_for_recovery()
    check(incident, "node")
    assert (incident.rank, incident.host, incident.workers) == (1, victim.host, (2, 1))
    assert incident.error == "no answer for 10 s", "before Ray says that its node died"
    wait_until(lambda: not lab.children(victim.name) + lab.agents(victim.name), "it has stopped")
    assert lab.raylet(victim).is_running(), "nobody has ended the node itself"
    lab.end(victim)
    training.finish()
    check_steps(training, every=10)
    sizes = [size for _, size in training.steps()]
    assert sizes == sorted(sizes, reverse=True)


def test_workers_are_placed_on_one_node_if_they_fit(lab: Laboratory, tmp_path: Path) -> None:
    lab.have(2)
    lab.add(1, cpus=2)
    large = lab.nodes[-1]
    training = Training.start(lab, tmp_path, LONG)
    training.wait_for_step(5)
    assert lab.at_work() == [large]
    assert len(lab.agents(large.name)) == 2
    training.finish()
    lab.end(large)
