"""The Dockerfile, read: no engine builds it here, so hold it to what can be known without one."""

import re
import tomllib
from typing import Any

from tests.k8s.documents import K8S, REPOSITORY, pods, render

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(verb, arguments), with continued lines joined and comments left out."""
    text = (K8S / "image" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(verb, " ".join(rest.split())) for verb, rest in pairs]


def stage(name: str) -> list[Instruction]:
    """The instructions after the FROM that ends in `name`."""
    found: list[Instruction] = []
    inside = False
    for verb, arguments in instructions():
        if verb == "FROM":
            inside = arguments.endswith(name)
        elif inside:
            found.append((verb, arguments))
    return found


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def copied() -> list[str]:
    lists = [text.split()[:-1] for verb, text in instructions() if verb == "COPY"]
    return [source for sources in lists for source in sources]


def install_step() -> str:
    (step,) = [text for verb, text in instructions() if verb == "RUN" and "setup.sh" in text]
    return step


def test_cuda_is_the_default_and_cpu_an_argument() -> None:
    assert instructions()[0] == ("ARG", "ACCELERATOR=cuda")
    assert ("ARG", "SPCONV=spconv-cu126") in stage("AS cuda")
    assert ("ENV", "SPCONV=${SPCONV}") in stage("AS cuda")
    assert ("ENV", "SPCONV=spconv") in stage("AS cpu")
    assert stage("${ACCELERATOR}"), "the last stage builds on the chosen one"


def test_it_runs_as_a_numbered_user_and_starts_nothing_itself() -> None:
    final = stage("${ACCELERATOR}")
    assert [text for verb, text in final if verb == "USER"] == ["1000:1000"]
    assert "ENTRYPOINT" not in {verb for verb, _ in instructions()}
    assert any(verb == "ENV" and "PATH=/opt/venv/bin:" in text for verb, text in final)


def test_it_installs_by_the_project_s_own_set_up() -> None:
    assert "VENV=/opt/venv EXTRA=train bash scripts/setup.sh" in install_step()
    script = (REPOSITORY / "scripts" / "setup.sh").read_text()
    for variable in ("VENV", "EXTRA", "SPCONV"):
        assert re.search(rf"\b{variable}=\${{{variable}:-", script), f"set-up reads {variable}"


def test_what_it_copies_exists_and_reaches_the_builder() -> None:
    admitted = {
        line.removeprefix("!").rstrip("/")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for source in copied():
        assert (REPOSITORY / source).exists(), source
        path = source.rstrip("/")
        assert path in admitted or any(a.startswith(f"{path}/") for a in admitted), source


def test_every_package_is_there_for_the_editable_install() -> None:
    packages = {
        pattern.rstrip("*")
        for pattern in project()["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages <= {source.rstrip("/") for source in copied()}
    for package in packages:
        assert f"{package}/__init__.py" in install_step()


def test_manifests_name_the_version_that_is_built() -> None:
    version, folders = project()["project"]["version"], ("overlays/local-cpu", "overlays/h100-8x8")
    for folder, accelerator in zip(folders, ("cpu", "cuda"), strict=True):
        for pod in pods(render(folder)):
            for where, container in pod.containers():
                assert container["image"] == f"convnextv2:{version}-{accelerator}", where
