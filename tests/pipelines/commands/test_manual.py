"""Help, README and behaviour say the same: every command is walked, every example is parsed."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.presets import PRESETS, find_preset, load_preset
from pipelines.runtime.provenance import version

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
HEAVY = ("torch", "numpy", "numba", "ffcv", "timm", "ray", "deepspeed", "mlflow", "matplotlib")

pytestmark = pytest.mark.usefixtures("_own_signals")


def commands(parser: argparse.ArgumentParser, *before: str) -> Iterator[tuple[str, ...]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*before, name)
                yield from commands(below, *before, name)


ALL = list(commands(cli.build_parser()))
LEAVES = [one for one in ALL if not any(other[:-1] == one for other in ALL)]


def help_of(command: tuple[str, ...], capsys: Capture) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [(), *ALL], ids=" ".join)
def test_help_has_an_example_that_would_run(command: tuple[str, ...], capsys: Capture) -> None:
    example = shlex.split(help_of(command, capsys).partition("example:\n")[2])
    assert example[: len(command) + 1] == ["convnextv2", *command]
    parsed = cli.build_parser().parse_args(example[1:])
    assert callable(parsed.act)
    if getattr(parsed, "preset", None):
        load_preset(parsed.preset, parsed.set)  # Raises what is wrong with name or settings.


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_prints_json_where_it_is_asked_to(
    command: tuple[str, ...], capsys: Capture
) -> None:
    assert re.search(r"^  --json +print", help_of(command, capsys), re.MULTILINE)


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every option and argument, of the commands below, too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)
        else:
            yield f"{parser.prog} {action.dest}", action


OPTIONS = dict(options_of(cli.build_parser()))


@pytest.mark.parametrize("action", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_says_what_it_is_and_what_it_is_by_default(action: argparse.Action) -> None:
    assert action.help
    if action.default not in (None, False, [], argparse.SUPPRESS):
        assert "default: " in action.help


def listed(readme: str) -> Iterator[tuple[str, ...]]:
    """The commands of README's list; `data info | write` is `data info` and `data write`."""
    block = readme.partition("## Commands\n```\n")[2].partition("```")[0]
    for line in block.splitlines():
        words = re.split(r" {2,}", line.removeprefix("convnextv2 "))[0].split(" | ")
        first = tuple(words[0].split())
        group = first[:1] if (first[0],) not in LEAVES else ()
        for word in words:
            yield (*group, word.split()[-1]) if group else (word.split()[0],)


def test_readme_lists_every_command_and_no_other() -> None:
    found = list(listed(README))
    assert len(found) == len(set(found))
    assert set(found) == set(LEAVES)


def written(document: str) -> Iterator[list[str]]:
    """Commands of ours in the code blocks of a page, as a shell would split them."""
    for block in re.findall(r"^```\n(.*?)^```", document, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.fullmatch(r"(?:\$ )?convnextv2 (.*?)(?: {2,}[a-z#].*)?", line.rstrip())
            if found and " | " not in found[1]:
                yield shlex.split(re.sub(r" \[.*?\]|\$S", "", found[1]))


@pytest.mark.parametrize("page", ["README.md", *(p.name for p in (ROOT / "docs").glob("*.md"))])
def test_commands_of_the_manual_parse(page: str) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for words in written(path.read_text()):
        # A group's name alone is no command; argparse ends the process where a word is wrong.
        cli.build_parser().parse_args(words)


def test_the_manual_has_commands_to_parse() -> None:
    assert len(list(written(README))) > 5
    assert len(list(written((ROOT / "docs" / "data.md").read_text()))) > 5


def test_what_presets_say_of_the_demo_is_the_table_of_the_readme() -> None:
    rows = re.findall(r"^\| (?:from|\*\*).*\| \*{0,2}\+?([\d.]+) ± ", README, re.MULTILINE)
    pretrained, scratch, gain = rows
    assert f"{pretrained} against {scratch} from scratch" in PRESETS["demo"].published
    assert float(pretrained) - float(scratch) == pytest.approx(float(gain))
    minutes = PRESETS["demo"].cost.split()[0]
    assert f"It takes {minutes} min after set-up" in README


def test_commands_that_presets_name_parse() -> None:
    for preset in PRESETS.values():
        parsed = cli.build_parser().parse_args(shlex.split(preset.command)[1:])
        load_preset(parsed.preset, parsed.set)
        assert find_preset(parsed.preset) is preset


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"convnextv2 {version()}\n"


def loaded_by(code: str) -> list[str]:
    """The heavy libraries that a process has imported when `code` is done."""
    code = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["demo", "--help"],
        ["presets"],
        ["presets", "imagenet1k-base", "--json"],
        ["checkpoint", "list", "tests"],
        ["demo", "--set", "no.such.key=1"],
        ["demo", "--set", "model.image_size=30"],
        ["knn", "--preset", "demo"],
        ["run", "no-such-preset"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "from pipelines import cli\n"
        f"try:\n    cli.main({words!r})\n"
        "except SystemExit as end:\n    assert not end.code"
    )
    assert loaded_by(code) == []


@pytest.mark.parametrize(
    "words",
    [
        ["data", "info", "tests"],
        ["data", "verify", "tests"],
        ["doctor"],
        ["demo", "--data", "nowhere"],
        ["reconstruct", "a", "b", "--output", "c"],
        ["collapse", "a", "--images", "b", "--output", "c"],
        ["export", "a", "b", "--format", "onnx"],
    ],
    ids=" ".join,
)
def test_slow_commands_say_something_before_they_import_anything_heavy(words: list[str]) -> None:
    code = (
        "from pipelines import cli\n"
        "class Spoken(Exception):\n    pass\n"
        "class Terminal:\n"
        "    encoding = 'utf-8'\n"
        "    def isatty(self): return False\n"
        "    def flush(self): pass\n"
        "    def write(self, text):\n        raise Spoken(text)\n"
        "out, sys.stdout, sys.stderr = sys.stdout, Terminal(), Terminal()\n"
        f"try:\n    cli.main({words!r})\n    spoken = ''\n"
        "except Spoken as said:\n    spoken = str(said)\n"
        "sys.stdout, sys.stderr = out, sys.__stderr__\n"
        "assert spoken and not spoken.startswith('error'), spoken"
    )
    assert loaded_by(code) == []


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_names_files_and_targets_that_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z-]+)", CONTRIBUTING)
    assert len(set(named)) > 6
    assert set(named) <= set(targets)
    rooms = r"(?:convnextv2|cluster|pipelines|tests|docs)/[\w./-]*\w"
    paths = set(re.findall(rooms, CONTRIBUTING))
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    for module in re.findall(r"python -m (tests[\w.]+)", CONTRIBUTING):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
