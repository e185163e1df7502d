"""MLflow's sqlite store keeps the absolute paths of artifacts; a run folder gets copied and moved.

Without a correction the copy would go on writing into the folder that it is a copy of.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

# Of MLflow 3.17; the tests create a store of the version that is installed.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def bring_artifacts_home(database: Path, artifacts: Path) -> None:
    """Point the runs of a store to their artifacts in `artifacts`, the folder beside it."""
    if not database.exists():
        return
    home = artifacts.as_uri()
    with closing(sqlite3.connect(database)) as store, store:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        if not tables >= {table for table, _ in PLACES}:
            return  # MLflow was killed before it had made them.
        locations = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in locations:
            if old == home or not str(old).endswith(f"/{artifacts.name}"):
                continue
            for table, column in PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (home, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
