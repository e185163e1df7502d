"""Checks of what the machine has: cores, memory, a compiler, Python, Ray clusters of others."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.placement import ClusterError, check_answers
from cluster.ray.access import (
    MODE,
    TOKEN,
    chosen_mode,
    find_token,
    mode_of,
    open_warning,
    token_file,
)
from pipelines.doctor.check import GB, MB, SET_UP, Check
from pipelines.runtime.limits import core_quotas, memory_limits

SHARED_MEMORY = Path("/dev/shm")


def cores() -> Check:
    everything = os.cpu_count() or 1
    usable = min([everything, len(os.sched_getaffinity(0)), *core_quotas()])
    found = f"{usable:g} of {everything} usable"
    if usable < 2:
        return Check("cores", "warn", found, "two workers share less than 2 cores: train with one")
    if usable < everything:
        advice = f"set OMP_NUM_THREADS={int(usable)}: some libraries start a thread per core"
        return Check("cores", "warn", found, advice)
    return Check("cores", "ok", found)


def memory() -> Check:
    available = min([psutil.virtual_memory().available, *memory_limits()])
    found = f"{available / GB:.1f} GB available"
    if available < 4 * GB:  # measured in the demo: 1.5 GB per worker, 1 GB for Ray's controller
        return Check("memory", "fail", found, "free or add memory: two workers and Ray need 4 GB")
    if available < 8 * GB:
        return Check("memory", "warn", found, "enough for the demo only; close other programs")
    return Check("memory", "ok", found)


def shared_memory() -> Check:
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{free / MB:.0f} MB free in {SHARED_MEMORY}"
    advice = "enlarge it: --shm-size=2g in Docker, an emptyDir with medium: Memory in Kubernetes"
    if free < 8 * MB:  # the FFCV writer: 32 bytes per photograph, 455 MB for ImageNet-22K
        return Check("shared memory", "fail", found, advice)
    if free < 600 * MB:
        return Check("shared memory", "warn", found, f"too little for ImageNet-22K; {advice}")
    return Check("shared memory", "ok", found)


def compiler() -> Check:
    wanted = (os.environ.get("CXX", "g++"), "ninja")
    # pip puts ninja beside the interpreter, where PATH need not lead.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [tool for tool in wanted if shutil.which(tool, path=path) is None]
    if missing:
        advice = (
            f"FFCV and DeepSpeed are built with it: {SET_UP} (or apt-get install g++ ninja-build)"
        )
        return Check("compiler", "fail", f"no {' and no '.join(missing)}", advice)
    return Check("compiler", "ok", ", ".join(wanted))


def python() -> Check:
    found = f"{sys.version_info.major}.{sys.version_info.minor} at {sys.executable}"
    if sys.version_info[:2] != (3, 11):
        advice = "tested with 3.11 only: remove .venv, then PYTHON=python3.11 make setup"
        return Check("Python", "warn", found, advice)
    return Check("Python", "ok", found)


def ray_clusters() -> Check:
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        advice = "runs join that cluster; unset RAY_ADDRESS to use this machine alone"
        return Check("Ray clusters", "warn", f"RAY_ADDRESS={address}", advice)
    heads = [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "gcs_server"]
    if heads:
        advice = "let that run end first, or if nobody needs it: ray stop"
        return Check("Ray clusters", "warn", f"already running here: process {heads}", advice)
    return Check("Ray clusters", "ok", "none running")


def ray_token() -> Check:
    """Whoever reaches a Ray cluster that asks for no token can run code as its user."""
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("local", "auto"):
        return _token_of_cluster(address)
    try:
        chosen = chosen_mode()
    except ClusterError as error:
        return Check("Ray token", "fail", str(error), f"unset {MODE}, or correct it")
    if chosen == "disabled":
        found, advice = f"off, because {MODE} is set", f"unset {MODE}: users of this machine get in"
        return Check("Ray token", "warn", found, advice)
    token = find_token()
    if token is None:
        return Check("Ray token", "ok", f"none yet; the first run writes {token_file()}")
    if token.source != TOKEN and token_file().stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        advice = f"chmod 600 {token.source}"
        return Check("Ray token", "warn", f"{token.source} is readable by other users", advice)
    return Check("Ray token", "ok", f"in {token.source}")


def _token_of_cluster(address: str) -> Check:
    try:
        check_answers(address)
        mode = mode_of(address)
    except ClusterError as error:
        advice = "docs/security.md has where the token belongs"
        return Check("Ray token", "fail", f"cluster at {address}: {error}", advice)
    if mode == "disabled":
        return Check("Ray token", "warn", f"not used at {address}", open_warning(address))
    return Check("Ray token", "ok", f"accepted at {address}")


CHECKS: list[Callable[[], Check]] = [
    cores,
    memory,
    shared_memory,
    compiler,
    python,
    ray_clusters,
    ray_token,
]
