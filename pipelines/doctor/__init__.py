"""What this machine has and lacks for a run, and what to do about it.

Every check is one function that returns one `Check`; the lists at the end say which are made.
Whatever is slow, or may crash or hang (importing a library, starting Ray), happens in another
process, so that a broken machine gives a line of the report instead of a dead doctor.
"""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from rich.text import Text

from pipelines.doctor.interpreter import Interpreter
from pipelines.runtime.limits import core_quotas, memory_limits

MB, GB = 10**6, 10**9
PINS = Path(__file__).parents[2] / "constraints.txt"
SHARED_MEMORY = Path("/dev/shm")
PINNED = ("torch", "torchvision", "deepspeed", "ray", "ffcv", "spconv", "mlflow", "numba", "numpy")
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "9p", "fuse.")
SET_UP = "run `make setup`"

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing looked at: `advice` is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


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
        return Check("memory", "warn", found, "enough for the demo alone; close what else is open")
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


def gpus(interpreter: Interpreter) -> Check:
    listed = "0"
    if shutil.which("nvidia-smi"):
        code, listed = _run("nvidia-smi", "--query-gpu=count", "--format=csv,noheader")
        if code != 0:
            return Check("GPUs", "fail", f"nvidia-smi: {listed}", "install or restart the driver")
    code, output = interpreter.run(
        "import torch; print(torch.cuda.device_count(), torch.version.cuda)"
    )
    if code != 0:
        return Check("GPUs", "fail", f"{listed}, but torch cannot say: {output}", SET_UP)
    seen, cuda = output.split()
    found = f"{listed} listed by nvidia-smi, {seen} seen by torch (CUDA {cuda})"
    if int(seen) < int(listed):
        advice = "look at CUDA_VISIBLE_DEVICES, the driver's age, and that torch is a CUDA build"
        return Check("GPUs", "fail", found, advice)
    return Check("GPUs", "ok", found if int(seen) else "none: training runs on the CPU")


def library(name: str, interpreter: Interpreter) -> Check:
    same_module = re.compile(f"{name}(-cu[0-9]+)?")  # spconv-cu126 is spconv, too
    builds = {d.name for d in metadata.distributions() if same_module.fullmatch(d.name)}
    if not builds:
        return Check(name, "fail", "not installed", SET_UP)
    version = metadata.version(builds.pop()).partition("+")[0]
    code, output = interpreter.run(f"import {name}")
    if code != 0:
        return Check(name, "fail", f"{version} does not import: {output}", SET_UP)
    if not PINS.exists():
        return Check(name, "warn", version, f"not compared: there is no {PINS}")
    pinned = re.search(rf"^{name}==(\S+)$", PINS.read_text(), re.MULTILINE)
    if pinned is None or pinned[1] != version:
        advice = f"tested with {pinned[1] if pinned else 'none'} ({PINS.name}): {SET_UP}"
        return Check(name, "warn", version, advice)
    return Check(name, "ok", version)


def ray_starts(interpreter: Interpreter) -> Check:
    code, output = interpreter.run(
        "import ray\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "print('one task answered', ray.get(ray.remote(lambda: 6 * 7).remote()))"
    )
    if code != 0:
        advice = "the reason is in the newest session's logs, /tmp/ray/session_latest/logs"
        return Check("Ray", "fail", output, advice)
    return Check("Ray", "ok", output)


def disk(run_dir: Path) -> Check:
    free = shutil.disk_usage(_nearest(run_dir)).free
    found = f"{free / GB:.1f} GB free for {run_dir}"
    advice = "free some, or choose another run folder; ImageNet-1K and its checkpoints take 100 GB"
    status: Status = "fail" if free < 2 * GB else "warn" if free < 20 * GB else "ok"
    return Check("disk", status, found, "" if status == "ok" else advice)


def durable_writes(run_dir: Path) -> Check:
    """Checkpoints rely on it: written, flushed, renamed, and the folder flushed."""
    try:
        with tempfile.TemporaryDirectory(dir=_nearest(run_dir), prefix=".doctor-") as folder:
            with open(f"{folder}/new", "wb") as file:
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
            os.rename(f"{folder}/new", f"{folder}/whole")
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except OSError as error:
        return Check("durable writes", "fail", str(error), "choose a run folder you can write to")
    return Check("durable writes", "ok", f"fsync and rename work in {_nearest(run_dir)}")


def database(run_dir: Path) -> Check:
    """MLflow's store is sqlite: a second process must be kept out while one writes."""
    nearest = _nearest(run_dir)
    advice = "put the run folder on a local disk, or point MLFLOW_TRACKING_URI at a server"
    mounts = [m for m in psutil.disk_partitions(all=True) if nearest.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "this file system"
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".doctor-") as folder:
            holder = sqlite3.connect(f"{folder}/probe.db", isolation_level=None)
            with contextlib.closing(holder):
                holder.execute("BEGIN EXCLUSIVE")
                code, output = _run_python(
                    "import sqlite3; sqlite3.connect("
                    f"{folder + '/probe.db'!r}, timeout=0).execute('BEGIN IMMEDIATE')"
                )
    except (OSError, sqlite3.Error) as error:
        return Check("database", "fail", f"sqlite on {kind}: {error}", advice)
    if code == 0 or "locked" not in output:
        return Check("database", "fail", f"sqlite locks do not hold on {kind}", advice)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        return Check("database", "warn", f"sqlite on {kind}, over the network", advice)
    return Check("database", "ok", f"sqlite locks hold on {kind}")


def _nearest(folder: Path) -> Path:
    """The folder itself, or what it would be made in: the doctor leaves nothing behind."""
    candidates = (folder.resolve(), *folder.resolve().parents)
    return next(p for p in candidates if os.path.exists(p))  # Path.exists raises without permission


def _run_python(code: str) -> tuple[int, str]:
    return _run(sys.executable, "-c", code)


def _run(*command: str, timeout: float = 180) -> tuple[int, str]:
    """Exit code and last line printed; past the time-out the process and its children are ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 1, f"no answer within {timeout:g} s"
    lines = (output if process.returncode == 0 else errors or output).strip().splitlines()
    return process.returncode, lines[-1] if lines else f"exit code {process.returncode}"


# In the order of the report. A Ray that this doctor starts must not be reported as one that was
# there, so that comes last.
QUICK: list[Callable[[], Check]] = [cores, memory, shared_memory, compiler, python, ray_clusters]
FOLDER: list[Callable[[Path], Check]] = [disk, durable_writes, database]
IMPORTS: list[Callable[[Interpreter], Check]] = [partial(library, name) for name in PINNED]
SLOW: list[Callable[[Interpreter], Check]] = [*IMPORTS, gpus, ray_starts]


def diagnose(run_dir: Path) -> Iterator[Check]:
    """Makes every check, one by one; none of them raises because the machine is in a bad state."""
    for check in QUICK:
        yield check()
    for look_at in FOLDER:
        yield look_at(run_dir)
    with Interpreter() as interpreter:
        for ask in SLOW:
            yield ask(interpreter)


def in_words(check: Check) -> Text:
    """The check as a line, and what to do in a line of its own; for printing unwrapped."""
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[check.status]
    words = Text(f"{check.status:4}", style).append(f"  {check.name:14}  {check.found}", "default")
    return words.append(f"\n      {check.advice}", "default") if check.advice else words
