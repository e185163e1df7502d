"""scripts/setup.sh and .ci/run where python, pip and apt only write down how they are called."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
TOOLS = "bash cat chmod cp cut dirname env find flock grep head kill ls mkdir mv printf rm sed"
MORE_TOOLS = "sha256sum sync tail timeout touch true"

# What python -m pip is asked for tells the step: $FAIL and $KILL name the one to break.
PYTHON = """
echo "python $*" >>"$BOX/calls"
case "$*" in
    *"${KILL:-nothing}"*) mkdir -p "$VENV/bin"; kill -9 $PPID; exit 1 ;;
    *"${FAIL:-nothing}"*) echo "OSError: no space left"; exit 1 ;;
    "-m venv"*) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python" ;;
    "-m pip list"*) cat "$BOX/installed" ;;
    "-m pip"* | "-" | *deepspeed.accelerator*) ;;
    *_base_executable*) echo "$0" ;;
    *sysconfig*) echo "$BOX/include" ;;
    *ensurepip*) [ -e "$BOX/ensurepip" ] ;;
    *) exec "$PYTHON_OF_THE_TESTS" "$@" ;;
esac
"""
APT = """
echo "apt-get $*" >>"$BOX/calls"
[ "$1" = install ] || exit 0
for tool in g++ git pkg-config; do printf '#!/bin/sh\\n' >"$BOX/bin/$tool"; done
chmod +x "$BOX"/bin/*
touch "$BOX/ensurepip" "$BOX/include/Python.h"
"""


class Box:
    """A clone and a machine with nothing but the stubs given and the usual small tools."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clone, self.venv = folder, folder / "clone", folder / "venv"
        for name in ("bin", "include", "clone/scripts", "clone/.ci", "clone/tests"):
            (folder / name).mkdir(parents=True)
        for name in ("scripts/setup.sh", ".ci/run", "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.clone / name)
        for tool in f"{TOOLS} {MORE_TOOLS}".split():
            (folder / "bin" / tool).symlink_to(shutil.which(tool) or "")
        for name in ("calls", "installed", "ensurepip", "include/Python.h"):
            (folder / name).touch()
        self.put("python3.11", PYTHON)
        self.put("id", "echo 1000")
        for tool in ("g++", "git", "pkg-config"):
            self.put(tool, "")

    def put(self, name: str, script: str) -> None:
        """A stub on PATH."""
        (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def lack(self) -> None:
        """Takes away every system package."""
        for name in ("bin/g++", "bin/git", "bin/pkg-config", "ensurepip", "include/Python.h"):
            (self.folder / name).unlink()

    def environment(self, **more: str) -> dict[str, str]:
        fixed = {"PATH": f"{self.folder}/bin", "VENV": str(self.venv), "BOX": str(self.folder)}
        return fixed | {"PYTHON_OF_THE_TESTS": sys.executable} | more

    def set_up(self, **more: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").write_text("")
        command = ["bash", str(self.clone / "scripts/setup.sh")]
        return subprocess.run(command, env=self.environment(**more), capture_output=True, text=True)

    def calls(self, of: str) -> list[str]:
        return [c for c in (self.folder / "calls").read_text().splitlines() if of in c]

    def installs(self) -> list[str]:
        """What each pip install was asked for."""
        return [call.partition("constraints.txt ")[2] for call in self.calls("pip install")]

    def others(self) -> list[str]:
        """The requirements that pip was given as a file."""
        return (self.venv / ".setup/others.txt").read_text().splitlines()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_it_stops_at_the_first_error() -> None:
    code = [
        line for line in (ROOT / "scripts/setup.sh").read_text().splitlines() if line[:1] != "#"
    ]
    assert code[0] == "set -euo pipefail"


def test_steps_come_in_the_order_that_works(box: Box) -> None:
    result = box.set_up()
    assert (result.returncode, result.stdout) == (0, "")
    lines = result.stderr.splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/8" for n in range(2, 9)]
    assert all(re.search(r" \d+ s$", line) for line in lines)
    installs = box.installs()
    assert installs[0] == "setuptools wheel ninja numpy py-cpuinfo"
    assert installs[1] == "torch torchvision"
    assert "spconv==2.3.8 cumm==0.7.11" in installs[2]
    assert "--no-build-isolation deepspeed" in box.calls("deepspeed")[0]
    assert "--no-build-isolation ffcv" in box.calls("ffcv")[0]
    others = box.others()
    assert {"mlflow==3.17.2", "safetensors>=0.5", "numba>=0.68", "pytest>=8.3"} <= set(others)
    apart = {"convnextv2", "torch", "torchvision", "deepspeed", "ffcv", "spconv"}
    assert not apart & {re.split(r"[\[=>]", line)[0] for line in others}


def test_a_second_run_does_and_says_nothing(box: Box) -> None:
    box.set_up()
    result = box.set_up()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert box.calls("") == []


@pytest.mark.parametrize("file", ["constraints.txt", "pyproject.toml", "scripts/setup.sh"])
def test_a_changed_install_list_is_installed(file: str, box: Box) -> None:
    box.set_up()
    with (box.clone / file).open("a") as changed:
        changed.write("# changed\n")
    assert box.set_up().returncode == 0
    assert "torch torchvision" in box.installs()
    assert box.calls("-m venv") == []


def test_another_clone_is_only_pointed_at(box: Box) -> None:
    box.set_up()
    box.clone = box.clone.rename(box.folder / "another")
    result = box.set_up()
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["8/8"]
    assert str(box.clone) in box.calls("--editable")[0]
    assert box.set_up().stderr == ""


def test_without_rights_one_line_names_the_packages(box: Box) -> None:
    box.lack()
    box.put("apt-get", APT)
    box.put("sudo", "exit 1")
    result = box.set_up()
    assert result.returncode == 1
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = "g++ git pkg-config libturbojpeg0-dev libjpeg-dev libopencv-dev"
    assert result.stderr.splitlines() == [
        "set-up  system packages are missing; run: "
        f"sudo apt-get install {packages} {version}-dev {version}-venv"
    ]
    assert box.calls("apt-get") == []


def test_with_sudo_the_packages_are_installed(box: Box) -> None:
    box.lack()
    box.put("apt-get", APT)
    box.put("dpkg", 'echo "dpkg $*" >>"$BOX/calls"')
    box.put("sudo", 'echo "sudo $*" >>"$BOX/calls"; shift; exec "$@"')
    result = box.set_up()
    assert (result.returncode, result.stderr.split()[1]) == (0, "1/8")
    assert box.calls("dpkg --configure -a")
    assert "libturbojpeg0-dev libjpeg-dev libopencv-dev" in box.calls("apt-get install")[-1]


def test_packages_that_did_not_help_are_named(box: Box) -> None:
    box.lack()
    for tool in ("apt-get", "dpkg"):
        box.put(tool, "")
    box.put("id", "echo 0")
    result = box.set_up()
    assert result.returncode == 1
    assert "installed, yet still not found:\n    g++\n" in result.stderr
    assert box.calls("-m venv") == []


def test_a_failed_step_shows_its_log_and_is_where_the_next_run_begins(box: Box) -> None:
    result = box.set_up(FAIL="torch torchvision")
    assert result.returncode == 1
    assert "OSError: no space left" in result.stderr
    assert str(box.venv / "setup.log") in result.stderr.splitlines()[-1]
    assert box.set_up().returncode == 0
    assert box.installs()[0] == "torch torchvision"


@pytest.mark.parametrize("killed", ["-m venv", "torch torchvision", "--editable"])
def test_after_a_kill_the_next_run_repairs(killed: str, box: Box) -> None:
    assert box.set_up(KILL=killed).returncode == -9
    assert box.set_up().returncode == 0
    assert killed in box.calls("python")[-1] or box.calls(killed)
    assert bool(box.calls("-m venv")) == (killed == "-m venv")
    torn_packages_looked_for = "python -" in box.calls("python")
    assert torn_packages_looked_for == (killed != "-m venv")
    assert box.set_up().stderr == ""


def test_an_environment_whose_python_is_gone_is_made_again(box: Box) -> None:
    box.set_up()
    (box.venv / "bin/python").unlink()
    assert box.set_up().returncode == 0
    assert box.calls("-m venv")
    assert box.installs()[0] == "setuptools wheel ninja numpy py-cpuinfo"


def test_torn_packages_are_forgotten_and_whole_ones_kept(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    site = next((tmp_path / "lib").glob("python*/site-packages"))
    for name in ("whole", "short", "lost", "early"):
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (site / f"{name}.py").write_text("12345")
        (info / "RECORD").write_text(f"{name}.py,sha256=x,5\n{name}-1.dist-info/RECORD,,\n")
        (info / "INSTALLER").write_text("pip\n")
    (site / "short.py").write_text("123")
    (site / "lost.py").unlink()
    (site / "early-1.dist-info/INSTALLER").unlink()
    (site / "~hole").mkdir()

    text = (ROOT / "scripts/setup.sh").read_text()
    script = re.search(r"forget_torn_packages\(\).*?<<'PY'\n(.*?)\nPY\n", text, re.DOTALL)
    assert script
    subprocess.run([tmp_path / "bin/python", "-"], input=script[1], text=True, check=True)
    assert [info.name for info in site.glob("*.dist-info")] == ["whole-1.dist-info"]
    assert not (site / "~hole").exists()


def test_a_second_set_up_waits_for_the_first(box: Box) -> None:
    lock = box.venv / ".setup/lock"
    lock.parent.mkdir(parents=True)
    first = subprocess.Popen(["flock", lock, "cat"], stdin=subprocess.PIPE)
    while subprocess.run(["flock", "--nonblock", lock, "true"]).returncode == 0:
        pass
    command = ["bash", str(box.clone / "scripts/setup.sh")]
    with subprocess.Popen(
        command, env=box.environment(), stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr
        assert second.stderr.readline() == f"set-up  waiting for another set-up of {box.venv}\n"
        assert box.calls("") == []
        first.communicate()
        second.communicate()
    assert second.returncode == 0
    assert box.installs()


def test_a_gpu_gets_its_own_spconv(box: Box) -> None:
    box.put("nvidia-smi", "")
    (box.folder / "installed").write_text("spconv==2.3.8\ncumm==0.7.11\ntorch==2\n")
    box.set_up()
    assert "spconv-cu126==2.3.8 cumm-cu126==0.7.11" in box.installs()[2]
    assert box.calls("pip uninstall") == ["python -m pip uninstall --yes spconv cumm"]
    box.set_up(SPCONV="spconv")
    assert "spconv==2.3.8 cumm==0.7.11" in box.installs()[2]


def test_the_image_has_no_developers_tools(box: Box) -> None:
    box.set_up(EXTRA="train")
    assert "mlflow==3.17.2" in box.others()
    assert not any(line.startswith(("pytest", "timm", "onnx")) for line in box.others())
    box.set_up()
    assert "pytest>=8.3" in box.others()


def test_a_wish_it_does_not_know_is_refused(box: Box) -> None:
    result = box.set_up(EXTRA="test")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "EXTRA=test is neither dev nor train" in result.stderr


def test_a_folder_with_other_things_is_left_alone(box: Box) -> None:
    box.venv.mkdir()
    (box.venv / "letters").write_text("dear")
    result = box.set_up()
    assert (result.returncode, "folder with other things" in result.stderr) == (1, True)
    assert [path.name for path in box.venv.iterdir()] == ["letters"]


def test_an_environment_made_by_hand_is_taken_over(box: Box) -> None:
    (box.venv / "bin").mkdir(parents=True)
    (box.venv / "pyvenv.cfg").touch()
    shutil.copy(box.folder / "bin/python3.11", box.venv / "bin/python")
    assert box.set_up().returncode == 0
    assert box.calls("-m venv") == []


def test_no_python_is_one_clear_line(box: Box) -> None:
    box.put("python3.11", "exit 1")
    result = box.set_up()
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no Python 3.11 or newer" in result.stderr
    assert "/opt/python" in box.set_up(PYTHON="/opt/python").stderr


def test_pins_are_exact_sorted_and_of_no_machine() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in PINS)
    assert sorted(PINS, key=str.upper) == PINS
    assert len({canonicalize_name(pin.partition("==")[0]) for pin in PINS}) == len(PINS)


def test_every_dependency_has_a_pin_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {canonicalize_name(name): version for name, version in (p.split("==") for p in PINS)}
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line


def run_ci(box: Box) -> list[str]:
    box.put("make", 'echo "$VENV $*" >>"$BOX/made"')
    (box.folder / "made").write_text("")
    environment = box.environment(HOME=str(box.folder / "home"))
    subprocess.run(["bash", box.clone / ".ci/run"], env=environment, check=True)
    return (box.folder / "made").read_text().splitlines()


def test_ci_keeps_one_environment_outside_the_clone(box: Box) -> None:
    (first,) = run_ci(box)
    environments = box.folder / "home/.cache/convnextv2-ci"
    path, *made = first.split()
    assert made == ["--no-print-directory", "test"]
    assert Path(path).parent == environments
    (Path(path) / "bin").mkdir(parents=True)
    assert run_ci(box) == [first]
    assert (Path(path) / "bin").exists()
    with (box.clone / "constraints.txt").open("a") as changed:
        changed.write("# changed\n")
    assert run_ci(box) != [first]
    assert list(environments.iterdir()) == []


def test_ci_runs_the_soak_tests_if_there_are_any(box: Box) -> None:
    (box.clone / "tests/test_long.py").write_text("@pytest.mark.soak\n")
    assert [line.split()[-1] for line in run_ci(box)] == ["test", "test-soak"]


def test_make_help_names_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"make ([a-z-]+) +\S", shown)) == sorted(targets[1].split())
