"""Files that operating systems leave in a collection; they are neither images nor classes."""

_NAMES = {
    # macOS, in zips and tars that it packed; Linux, at the root of a disk.
    "__macosx", "icon\r", "lost+found",
    # Windows.
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db",
    "desktop.ini",
    # Synology and QNAP file servers.
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot",
}  # fmt: skip


def is_leftover(path: str) -> bool:
    """Whether a step of `path` is such a name, in any case, or hidden: `._x.jpg`, `.DS_Store`."""
    return any(
        step.lower() in _NAMES or (step.startswith(".") and step not in (".", ".."))
        for step in path.split("/")
    )
