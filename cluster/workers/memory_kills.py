"""How many processes of this container, or of this machine, the kernel has killed for memory.

A process that is killed for memory looks like any that was killed by SIGKILL; only the kernel's
counters tell. They are looked for in the control group of this process (version 2, then version 1,
where a container sees its own group at the root), and last in that of the whole machine.
"""

from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
MACHINE = Path("/proc/vmstat")


def memory_kills() -> int:
    """The count so far; 0 where the kernel does not say."""
    for path in _counters():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        counts = dict(line.split(maxsplit=1) for line in lines)
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0


def _counters() -> Iterator[Path]:
    groups = dict(line.split(":", 2)[1:] for line in _read(OWN_GROUPS).splitlines())
    for name, mount, file in (
        ("", GROUPS, "memory.events"),
        ("memory", GROUPS / "memory", "memory.oom_control"),
    ):
        yield mount / groups.get(name, "/").strip("/") / file
        yield mount / file
    yield MACHINE


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
