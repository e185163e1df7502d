"""What every pod and object must keep to; each rule yields what is wrong, in words.

A schema cannot say these things: that a pod is not root, that what it names exists.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tests.k8s.documents import Document, Pod, of_kind, pods, quantity

Rule = Callable[[list[Document]], Iterator[str]]


def pods_are_confined(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        security = pod.spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") != 1000:
            yield f"{pod.where}: may run as root; expected runAsNonRoot and runAsUser 1000"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: no seccomp profile"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: gets a token for the Kubernetes API, which it does not need"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(field):
                yield f"{pod.where}: {field}"
        for volume in pod.spec.get("volumes", []):
            if "hostPath" in volume:
                yield f"{pod.where}: volume {volume['name']} is a folder of the host"


def containers_are_confined(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        for where, container in pod.containers():
            security = container.get("securityContext", {})
            if security.get("privileged"):
                yield f"{where}: privileged"
            if security.get("allowPrivilegeEscalation") is not False:
                yield f"{where}: may escalate privileges"
            if security.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: keeps or adds capabilities"
            if security.get("runAsUser", 1000) == 0 or security.get("runAsNonRoot") is False:
                yield f"{where}: overrides its pod and runs as root"


def containers_are_bounded(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        for where, container in pod.containers():
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            for name in ("cpu", "memory"):
                for kind, amounts in (("request", requests), ("limit", limits)):
                    if name not in amounts:
                        yield f"{where}: no {name} {kind}"
            for name in requests.keys() & limits.keys():
                if quantity(requests[name]) > quantity(limits[name]):
                    yield f"{where}: requests more {name} than its limit"
            if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
                yield f"{where}: GPUs must be requested as limited"


def images_are_pinned(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        for where, container in pod.containers():
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            if tag in ("", "latest") and "@sha256:" not in container["image"]:
                yield f"{where}: image {container['image']} names no version"


def references_resolve(documents: list[Document]) -> Iterator[str]:
    known = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for pod in pods(documents):
        for kind, name in _references(pod):
            if (kind, name) not in known:
                yield f"{pod.where}: {kind} {name} is not among the manifests"


def _references(pod: Pod) -> Iterator[tuple[str, str]]:
    if account := pod.spec.get("serviceAccountName"):
        yield "ServiceAccount", account
    for secret in pod.spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"]
    for volume in pod.spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
    for _, container in pod.containers():
        sources = container.get("envFrom", []) + [
            variable.get("valueFrom", {}) for variable in container.get("env", [])
        ]
        for source in sources:
            for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                for reference in (source.get(f"{field}Ref"), source.get(f"{field}KeyRef")):
                    if reference:
                        yield kind, reference["name"]


def mounts_resolve(documents: list[Document]) -> Iterator[str]:
    for pod in pods(documents):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for where, container in pod.containers():
            memory = quantity(container.get("resources", {}).get("limits", {}).get("memory", 0))
            for mount in container.get("volumeMounts", []):
                if (volume := volumes.get(mount["name"])) is None:
                    yield f"{where}: mounts {mount['name']}, which is no volume of its pod"
                elif volume.get("emptyDir", {}).get("medium") == "Memory":
                    # Its pages count against the container: unbounded they end in an OOM kill.
                    size = volume["emptyDir"].get("sizeLimit")
                    if size is None or quantity(size) >= memory:
                        yield f"{where}: {mount['mountPath']} may take all its memory"


def selectors_match(documents: list[Document]) -> Iterator[str]:
    labels = [pod.metadata.get("labels", {}) for pod in pods(documents)]
    for where, selector in _selectors(documents):
        if not any(selector.items() <= candidate.items() for candidate in labels):
            yield f"{where}: selects no pod ({selector})"


def _selectors(documents: list[Document]) -> Iterator[tuple[str, dict[str, str]]]:
    for document in documents:
        where, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
        if document["kind"] == "Service":
            yield where, spec["selector"]
        elif document["kind"] in ("Deployment", "PodDisruptionBudget", "NetworkPolicy"):
            found = spec.get("selector") or spec["podSelector"]
            yield where, found["matchLabels"]
    for pod in pods(documents):
        for found in _label_selectors(pod.spec.get("affinity", {})):
            yield f"{pod.where}, affinity", found["matchLabels"]


def _label_selectors(tree: Any) -> Iterator[Document]:
    if isinstance(tree, dict):
        if "labelSelector" in tree:
            yield tree["labelSelector"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from _label_selectors(branch)


def services_reach_a_port(documents: list[Document]) -> Iterator[str]:
    for service in of_kind(documents, "Service"):
        selector = service["spec"]["selector"].items()
        ports = [
            port
            for pod in pods(documents)
            if selector <= pod.metadata.get("labels", {}).items()
            for _, container in pod.containers()
            for port in container.get("ports", [])
        ]
        reachable = {port.get("name") for port in ports} | {port["containerPort"] for port in ports}
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in reachable:
                yield f"Service {service['metadata']['name']}: no container has port {port}"


POD_RULES: tuple[Rule, ...] = (
    pods_are_confined,
    containers_are_confined,
    containers_are_bounded,
    images_are_pinned,
    references_resolve,
    mounts_resolve,
    selectors_match,
    services_reach_a_port,
)
