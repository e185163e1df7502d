"""What a stage's key is made of: hashes of settings and of source code."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCES = {".py", ".cpp", ".h"}


def digest_of(content: Any) -> str:
    """sha256 of canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(modules: Sequence[str]) -> str:
    """One digest for the source of modules; of packages, with everything below them."""
    total = hashlib.sha256()
    for module in sorted(modules):
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None, module
        origin = Path(spec.origin)
        files = [origin]
        if origin.name == "__init__.py":
            files = sorted(f for f in origin.parent.rglob("*") if f.suffix in SOURCES)
        for file in files:
            total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()
