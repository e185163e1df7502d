"""The machines: placing workers, sharded training, checkpoints, faults. Knows no model."""

from importlib.util import find_spec


def require(*modules: str, needed_by: str) -> None:
    """Say what to install before a part that needs more than the rest is used; imports nothing.

    Raises:
        ModuleNotFoundError: With the modules that are not there and the command that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{needed_by} needs {', '.join(missing)}: pip install 'convnextv2[train]'"
        )
