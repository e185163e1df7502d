"""In words: why a stage runs, by comparison with its latest finished run."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.graph.complete import finished_runs

SHOWN = 4


def why_new(stage_folder: Path, parts: Mapping[str, object]) -> str:
    """Compare a key's parts with those of the latest finished run of the same stage."""
    others = finished_runs(stage_folder)
    if not others:
        return "it has not been run here before"
    changes = _differences(others[-1]["parts"], parts)
    if not changes:  # Somebody has moved the folder that has this key.
        return "its folder is not where it was"
    more = " …" if len(changes) > SHOWN else ""
    return "changed: " + ", ".join(changes[:SHOWN]) + more


def _differences(before: object, now: object, path: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        return [
            change
            for key in keys
            for change in _differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else key
            )
        ]
    if before == now:
        return []
    if path == "code" or path.startswith("inputs."):
        return [path.removeprefix("inputs.") if path != "code" else "the code"]
    return [f"{path.removeprefix('settings.')} {before} → {now}"]
