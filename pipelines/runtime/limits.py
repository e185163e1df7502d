"""Limits that control groups (of containers, of Kubernetes) put on this process."""

from collections.abc import Iterator
from pathlib import Path

OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def core_quotas() -> Iterator[float]:
    """Cores that each control group allows this process."""
    for value in _cgroup_values("", "cpu.max"):
        quota, period = value.split()
        if quota != "max":
            yield int(quota) / int(period)
    v1 = (_cgroup_values("cpu", f"cpu.cfs_{part}_us") for part in ("quota", "period"))
    for quota, period in zip(*v1, strict=True):
        if int(quota) > 0:
            yield int(quota) / int(period)


def memory_limits() -> Iterator[int]:
    """Bytes of memory that each control group allows this process."""
    yield from (int(v) for v in _cgroup_values("", "memory.max") if v != "max")
    yield from map(int, _cgroup_values("memory", "memory.limit_in_bytes"))


def _cgroup_values(controller: str, file: str) -> Iterator[str]:
    """The file's content in this process's control group and all above it (v2: controller "")."""
    for line in OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mount = CGROUPS / controller
        own = mount / path.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount) and (folder / file).exists():
                yield (folder / file).read_text().strip()
