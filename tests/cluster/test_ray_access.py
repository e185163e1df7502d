"""Who can use a Ray cluster: a real one of this machine, and the sentences about others."""

import json
import os
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import grpc
import psutil
import pytest

from cluster import group, ray_access
from cluster.launch import Cluster, ClusterError, Placement
from cluster.ray_access import MODE, TOKEN, TOKEN_PATH
from tests.cluster.waiting import free_port, until

PLACEMENT = Placement(num_workers=2, start_timeout_seconds=120)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has never used Ray."""
    for name in (MODE, TOKEN, TOKEN_PATH, "RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def permissions(path: Path | str) -> str:
    return stat.filemode(os.stat(path).st_mode)
