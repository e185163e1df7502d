"""All checks of a machine.

A check is a function that returns one `Check`; each file of checks ends with the list of them.
Whatever is slow, or may crash or hang (importing a library, starting Ray), happens in
another process, so that a broken machine gives a line of the report and does not stop the doctor.
"""

from collections.abc import Iterator
from pathlib import Path

from pipelines.doctor import folder, libraries, machine
from pipelines.doctor.check import Check
from pipelines.doctor.interpreter import Interpreter


def diagnose(run_dir: Path) -> Iterator[Check]:
    """Make every check in turn; a machine in a bad state is reported, never raised."""
    for check in machine.CHECKS:
        yield check()
    for look_at in folder.CHECKS:
        yield look_at(run_dir)
    with Interpreter() as interpreter:
        for ask in libraries.CHECKS:
            yield ask(interpreter)
