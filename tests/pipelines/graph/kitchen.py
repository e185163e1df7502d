"""A pipeline of toy stages, and ways to look at what it leaves."""

from pathlib import Path
from typing import Any

from pipelines.graph import Outputs, Pipeline, Stage, StageContext, hash_files


class Kitchen:
    """Three toy stages, bread and butter and toast; counts how often each ran."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: list[str] = []
        self.flour = 1
        self.jam = False
        self.fail_in = ""
        self.advice = ""
        self.said: list[str] = []

    def stage(self, name: str, settings: dict[str, Any], depends_on: tuple[str, ...] = ()) -> Stage:
        def run(context: StageContext) -> Outputs:
            self.runs.append(name)
            read = [(path / "out").read_text() for path in context.inputs.values()]
            with (context.directory / "steps").open("a") as steps:
                steps.write("step\n")
            if self.fail_in == name:
                raise OSError("no gas")
            (context.directory / "out").write_text(f"{name} {settings} {read}")
            return hash_files(context.directory, "out")

        return Stage(
            name=name, run=run, settings=settings, depends_on=depends_on, when_damaged=self.advice
        )

    def pipeline(self) -> Pipeline:
        return Pipeline(
            self.root,
            [
                self.stage("bread", {"flour": self.flour, "oven": {"heat": 200}}),
                self.stage("butter", {"milk": 1}),
                self.stage("toast", {"jam": self.jam}, depends_on=("bread",)),
            ],
            say=self.said.append,
        )

    def run(self, rerun: str | None = None) -> dict[str, tuple[str, str]]:
        self.runs = []
        results = self.pipeline().run(rerun=rerun)
        return {result.context.stage.name: (result.status, result.reason) for result in results}


def only(root: Path, pattern: str) -> Path:
    (path,) = root.glob(pattern)
    return path


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def flip(path: Path) -> None:
    """Another content of the same size."""
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
