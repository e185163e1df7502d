"""The rendered manifests against Kubernetes' schemas, and against our rules."""

import kubernetes_validate
import pytest
import yaml

from tests.k8s.documents import K8S, REPOSITORY, Document, find, pods, render
from tests.k8s.launch_rules import LAUNCH_RULES
from tests.k8s.operator_rules import OPERATOR_RULES
from tests.k8s.ray_fields import ray_fields_are_known
from tests.k8s.rules import POD_RULES, Rule

FOLDERS = ("base", "overlays/local-cpu", "overlays/h100-8x8")
KUBERNETES = "1.32"
RULES = (*POD_RULES, ray_fields_are_known, *OPERATOR_RULES, *LAUNCH_RULES)

every_folder = pytest.mark.parametrize("folder", FOLDERS)


def data_loader() -> list[Document]:
    return [yaml.safe_load((K8S / "data-loader.yaml").read_text())]


@every_folder
def test_core_kinds_are_what_kubernetes_takes(folder: str) -> None:
    for document in render(folder):
        if document["kind"] != "RayJob":
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@every_folder
def test_pods_inside_the_rayjob_are_what_kubernetes_takes(folder: str) -> None:
    templates = list(pods([find(render(folder), "RayJob", "convnextv2")]))
    assert len(templates) == 2, "a head and a group of workers"
    for pod in templates:
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": pod.metadata, "spec": pod.spec}
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@every_folder
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(folder: str, rule: Rule) -> None:
    assert list(rule(render(folder))) == []


def test_the_data_loader_is_confined_and_fills_the_job_s_claim() -> None:
    (document,) = data_loader()
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for rule in POD_RULES:
        assert list(rule([*data_loader(), *render("base")])) == []


def test_only_the_data_loader_writes_images() -> None:
    for pod in (*pods(render("base")), *pods(data_loader())):
        for where, container in pod.containers():
            mount = pod.mount_of(container, "/data/imagenet")
            if mount is not None:
                assert mount.get("readOnly", False) == ("data-loader" not in where), where


def test_storage_can_be_applied_alone() -> None:
    """README: the claims come first (kubectl apply -l), then the images, then the job."""
    chosen = [
        document["kind"]
        for document in render("base")
        if document["metadata"]["labels"].get("app.kubernetes.io/component") == "storage"
    ]
    assert chosen == ["PersistentVolumeClaim"] * 3


def test_ray_is_the_version_we_install() -> None:
    pins = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    cluster = find(render("base"), "RayJob", "convnextv2")["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pins["ray"]


def test_the_h100_overlay_is_what_its_name_says() -> None:
    cluster = find(render("overlays/h100-8x8"), "RayJob", "convnextv2")["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert (group["replicas"], container["resources"]["limits"]["nvidia.com/gpu"]) == (8, "8")
    assert container["image"].endswith("-cuda")
