"""A worker is killed while its process group is set up, before our function runs."""

import os
from pathlib import Path

import pytest

from cluster import group
from cluster.launch import Cluster, Placement
from cluster.resilience.incidents import Incident

pytestmark = pytest.mark.soak

# Python runs this at the start of every process that has it on its path.
SITE = """
import os, signal, sys, threading, time

def lay_in_wait():
    while not hasattr(sys.modules.get("torch.distributed"), "destroy_process_group"):
        time.sleep(0.001)
    distributed = sys.modules["torch.distributed"]
    join = distributed.init_process_group

    def die_or_join(*args, **kwargs):
        if os.environ["RANK"] == "1" and not os.path.exists(MARKER):
            open(MARKER, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return join(*args, **kwargs)

    distributed.init_process_group = die_or_join

threading.Thread(target=lay_in_wait, daemon=True).start()
"""


def leave_rank(folder: Path) -> None:
    (folder / f"finished-{group.rank()}").touch()


def test_a_death_in_the_set_up_costs_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, site = tmp_path / "killed", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"MARKER = {str(marker)!r}\n{SITE}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    noted: list[Incident] = []
    with Cluster(Placement(num_workers=2, max_failures=1, start_timeout_seconds=120)) as cluster:
        cluster.run(leave_rank, tmp_path, name="start", note=noted.append)
    assert marker.exists()
    assert {(each.cause, each.rank, each.phase) for each in noted} == {
        ("killed", 1, "process group")
    }
    assert {path.name for path in tmp_path.glob("finished-*")} == {"finished-0", "finished-1"}
