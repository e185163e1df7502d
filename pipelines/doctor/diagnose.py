"""Every check of a machine, one by one.

Every check is one function that returns one `Check`; each file of them ends in a list of those that
are made. Whatever is slow, or may crash or hang (importing a library, starting Ray), happens in
another process, so that a broken machine gives a line of the report instead of a dead doctor.
"""

from collections.abc import Iterator
from pathlib import Path

from pipelines.doctor import folder, libraries, machine
from pipelines.doctor.check import Check
from pipelines.doctor.interpreter import Interpreter


def diagnose(run_dir: Path) -> Iterator[Check]:
    """Makes every check, one by one; none of them raises because the machine is in a bad state."""
    for check in machine.CHECKS:
        yield check()
    for look_at in folder.CHECKS:
        yield look_at(run_dir)
    with Interpreter() as interpreter:
        for ask in libraries.CHECKS:
            yield ask(interpreter)
