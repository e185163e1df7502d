"""`COMPLETE.json`: that a stage is done, and what its outputs were, to see whether they still are.

An output is hashed once. The hash is kept with inode, size and modification time of the file: while
these stay, the file is taken to be the same; one that was touched or copied is read again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convnextv2.durable import write_json
from pipelines.graph.keys import digest_of

COMPLETE = "COMPLETE.json"
LONG_READ_BYTES = 1 << 30

Outputs = dict[str, str]
Content = dict[str, Any]


class DamageError(RuntimeError):
    """An output is not as it was written, and a person has to decide what is to be done."""


def mark_complete(
    directory: Path,
    outputs: Outputs,
    parts: Mapping[str, object],
    seconds: float,
    reruns: list[str],
) -> None:
    """Say that the stage in `directory` is done; `reruns` are those that this was part of."""
    content = {
        "outputs": {
            name: {"sha256": sha256, **_identity(directory / name)}
            for name, sha256 in outputs.items()
        },
        "digest": digest_of(outputs),
        "parts": parts,
        "seconds": seconds,
        "finished": time.time(),
        "reruns": reruns,
    }
    write_json(directory / COMPLETE, content)


def read_complete(directory: Path) -> Content | None:
    """The content of COMPLETE.json; None for a stage that is not done.

    Raises:
        ValueError: When there is one that cannot be understood.
    """
    path = directory / COMPLETE
    if not path.exists():
        return None
    content: Content = json.loads(path.read_text())
    if not isinstance(content, dict) or not content.keys() >= {"outputs", "digest", "parts"}:
        raise ValueError("it lacks what belongs in it")
    return content


def finished_runs(stage_folder: Path) -> list[Content]:
    """The content of COMPLETE.json of all runs of a stage, latest last, without unreadable ones."""
    found = []
    for path in stage_folder.glob(f"*/{COMPLETE}"):
        try:
            content = read_complete(path.parent)
        except ValueError:
            continue
        if content is not None:
            found.append(content)
    return sorted(found, key=lambda content: content["finished"])


def damaged(directory: Path, say: Callable[[str], None] = lambda message: None) -> dict[str, str]:
    """What is wrong with a finished stage's files, by name; empty when it is whole or not done.

    Files with the inode, size and time of the last look are not read. A long read is said before.
    """
    try:
        content = read_complete(directory)
    except ValueError as error:
        return {COMPLETE: f"cannot be read: {error}"}
    if content is None:
        return {}
    outputs: dict[str, Content] = content["outputs"]
    unsure = {
        name: entry
        for name, entry in outputs.items()
        if not (directory / name).exists()
        or not entry.items() >= _identity(directory / name).items()
    }
    if not unsure:
        return {}
    total = sum(entry["bytes"] for entry in unsure.values())
    if total > LONG_READ_BYTES:
        say(f"reading {total / 1e9:,.0f} GB in {directory}, to see that they are as written")
    problems = problems_of(directory, unsure)
    good = {name: entry for name, entry in unsure.items() if name not in problems}
    for name, entry in good.items():
        entry |= _identity(directory / name)
    if good:
        write_json(directory / COMPLETE, content)
    return problems


def verified_outputs(directory: Path) -> Iterator[tuple[str, str, int]]:
    """Read a finished stage's outputs to the last byte: name, what is wrong ("" if nothing), size.

    A record of completion that cannot be read is all there is to say of its stage.
    """
    try:
        content = read_complete(directory)
    except ValueError as error:
        yield COMPLETE, f"cannot be read: {error}", 0
        return
    for name, entry in (content or {"outputs": {}})["outputs"].items():
        yield name, problems_of(directory, {name: entry}).get(name, ""), entry["bytes"]


def problems_of(directory: Path, outputs: Mapping[str, Content]) -> dict[str, str]:
    """Compare files with what COMPLETE.json says of them, to the last byte."""
    found = {name: _problem(directory / name, entry) for name, entry in outputs.items()}
    return {name: problem for name, problem in found.items() if problem}


def _problem(path: Path, entry: Content) -> str:
    if not path.exists():
        return "is gone"
    size, expected = path.stat().st_size, entry["bytes"]
    if size != expected:
        return f"has {size:,} bytes instead of {expected:,}"
    if hash_files(path.parent, path.name)[path.name] != entry["sha256"]:
        return "has changed since it was written (sha256 differs)"
    return ""


def set_aside(path: Path) -> Path:
    """Give a damaged file a name that says so: it is evidence, and nobody reads it by mistake."""
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(path, kept)
    return kept


def hash_files(directory: Path, *names: str) -> Outputs:
    """Outputs by hashing the named files."""
    outputs = {}
    for name in names:
        with (directory / name).open("rb") as file:
            outputs[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return outputs


def _identity(path: Path) -> dict[str, int]:
    """What changes when a file is written, replaced or copied."""
    status = path.stat()
    return {"bytes": status.st_size, "inode": status.st_ino, "mtime_ns": status.st_mtime_ns}
