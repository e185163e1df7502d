"""Who can use a Ray cluster: one of this machine, a foreign one, and the sentences about both."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest

from cluster import group
from cluster.launch import Cluster, ClusterError, Placement
from cluster.ray import access
from cluster.ray.access import MODE, TOKEN, TOKEN_PATH

PLACEMENT = Placement(num_workers=2, start_timeout_seconds=120)
OTHERS = stat.S_IRWXG | stat.S_IRWXO


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has never used Ray."""
    for name in (MODE, TOKEN, TOKEN_PATH, "RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def closed_to_others(path: Path | str) -> bool:
    return not os.stat(path).st_mode & OTHERS


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def meet_and_wait(folder: Path) -> None:
    """Say that the group is there, and keep it until the driver has looked."""
    group.all_gather(group.rank())
    (folder / f"met-{group.rank()}").touch()
    while not all(group.all_gather((folder / "seen").exists())):
        pass  # Together: who leaves alone leaves the other one in a collective.


def listening() -> set[tuple[str, str]]:
    """Where processes that descend from this one listen: their command, and the address."""
    found = set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found.add((command, each.laddr.ip))
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    found = ip_address(address)
    if isinstance(found, IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return found.is_loopback


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_its_users_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, str]] = set()
    folder = home / "run"
    folder.mkdir()

    def look() -> None:
        if len(list(folder.glob("met-*"))) == 2 and not seen:
            seen.update(listening())
            (folder / "seen").touch()

    with Cluster(replace(PLACEMENT, dashboard_port=free_port())) as cluster:
        cluster.run(meet_and_wait, folder, name="meet", while_waiting=look)
        import ray

        at = f"127.0.0.1:{ray.get_runtime_context().gcs_address.rpartition(':')[2]}"
        assert cluster.warning == ""
        assert access.mode_of(at) == "token"
        monkeypatch.setenv(TOKEN, "of another cluster")
        with pytest.raises(ClusterError, match="does not accept the token in RAY_AUTH_TOKEN"):
            access.mode_of(at)
        monkeypatch.delenv(TOKEN)
        monkeypatch.setenv(TOKEN_PATH, str(home / "none"))
        with pytest.raises(ClusterError, match="asks for a token, and there is none here: copy"):
            access.mode_of(at)
        monkeypatch.setenv(MODE, "disabled")
        with pytest.raises(ClusterError, match="RAY_AUTH_MODE is set to disabled here: unset it"):
            access.mode_of(at)
        monkeypatch.delenv(MODE)
        session = Path(ray._private.worker._global_node.get_session_dir_path())

    assert MODE not in os.environ
    for process in ("gcs_server", "raylet", "dashboard.py", "ray::Dash", "workers.child"):
        assert any(process in command for command, _ in seen), process
    assert [where for where in seen if not is_loopback(where[1])] == []
    assert closed_to_others(home / ".ray/auth_token")
    assert any(closed_to_others(parent) for parent in session.parents)


@pytest.fixture
def open_cluster() -> Iterator[str]:
    """The address of a running cluster that asks for no token."""
    port = free_port()
    # In /tmp, because the paths of sockets must be short.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", f"--ray-client-server-port={free_port()}", "--num-cpus=1"]
        command += ["--include-dashboard=false", f"--temp-dir={folder}", "--min-worker-port=0"]
        command += ["--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        environment = os.environ | {MODE: "disabled"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as head:
            assert head.stdout is not None
            assert any("Ray runtime started" in line for line in head.stdout)
            started = psutil.Process(head.pid).children(recursive=True)
            yield f"127.0.0.1:{port}"
            head.terminate()
        psutil.wait_procs(started, timeout=30)


@pytest.mark.slow
def test_a_cluster_without_tokens_is_used_and_named(
    open_cluster: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access.ensure_token()  # A token for other clusters must not get in the way.
    placement = Placement(num_workers=1, address=open_cluster, start_timeout_seconds=120)
    with Cluster(placement) as cluster:
        assert f"{open_cluster} asks for no token: whoever reaches its ports" in cluster.warning
        assert list(cluster.map(abs, [-42])) == [42]
    monkeypatch.setenv(MODE, "token")
    with pytest.raises(ClusterError, match="asks for no token, but RAY_AUTH_MODE is set to token"):
        Cluster(placement).__enter__()
    monkeypatch.setenv(MODE, "disabled")
    with Cluster(placement) as cluster:
        assert cluster.warning == "", "who has chosen it knows"


def test_one_token_is_written_whoever_is_first(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: access.ensure_token(), range(8)))
    path = home / ".ray/auth_token"
    token = access.find_token()
    assert token == access.Token(path.read_text(), str(path))
    assert len(token.text) == 64
    assert os.listdir(path.parent) == ["auth_token"]
    access.ensure_token()
    assert access.find_token() == token


def test_a_token_that_ray_wrote_for_everybody_is_closed(home: Path) -> None:
    path = home / ".ray/auth_token"
    path.parent.mkdir()
    path.write_text("abc\n")
    path.chmod(0o644)
    access.ensure_token()
    assert closed_to_others(path)
    assert access.find_token() == access.Token("abc", str(path))


def test_the_environment_comes_before_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "elsewhere").write_text("from a file")
    monkeypatch.setenv(TOKEN_PATH, str(home / "elsewhere"))
    assert access.find_token() == access.Token("from a file", str(home / "elsewhere"))
    monkeypatch.setenv(TOKEN, "from the environment")
    assert access.find_token() == access.Token("from the environment", TOKEN)


def test_a_home_that_cannot_be_written(home: Path) -> None:
    (home / ".ray").touch()
    with pytest.raises(ClusterError, match=r"cannot be kept in .*auth_token.*RAY_AUTH_TOKEN_PATH"):
        access.ensure_token()


@pytest.mark.parametrize("squat", [Path.touch, lambda path: path.symlink_to(path.parent)])
def test_a_folder_that_somebody_else_put_there(
    squat: Callable[[Path], None], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    squat(home / f"ray-{os.getuid()}")
    with pytest.raises(ClusterError, match="not this user's folder; set RAY_TMPDIR"):
        access.private_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/mine")
    assert access.private_folder() is None


def test_a_port_that_is_not_rays_says_nothing_about_tokens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "CONNECT_SECONDS", 0.2)
        assert access.mode_of(f"127.0.0.1:{silent.getsockname()[1]}") is None
