"""KubeRay 1.7's own checks, which no schema holds, and what its behaviour asks of manifests.

The operator refuses a RayJob that breaks one of the first kind (validation.go) only after it was
applied; what breaks one of the second kind runs, and fails on the bad day.
"""

import re
from collections.abc import Iterator

from tests.k8s.documents import Document, Pod, find, of_kind, pods, ray_templates
from tests.k8s.rules import Rule

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
# KubeRay's head Service selects by these, with its own values.
RESERVED_LABELS = ("app.kubernetes.io/name", "app.kubernetes.io/created-by")
AUTH_SINCE = (2, 52)


def rayjob_fields_fit(documents: list[Document]) -> Iterator[str]:
    for job in of_kind(documents, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        where = f"RayJob {name}"
        if len(name) > 47 or not DNS_1035.fullmatch(name):
            yield f"{where}: name is no DNS-1035 label of at most 47 characters"
        if spec.get("submissionMode", "K8sJobMode") not in SUBMISSION_MODES:
            yield f"{where}: submissionMode is none of {', '.join(SUBMISSION_MODES)}"
        if "rayClusterSpec" not in spec and not spec.get("clusterSelector"):
            yield f"{where}: neither rayClusterSpec nor clusterSelector"
        for field in ("backoffLimit", "ttlSecondsAfterFinished"):
            if spec.get(field, 0) < 0:
                yield f"{where}: {field} is negative"
        for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if spec.get(field, 1) <= 0:
                yield f"{where}: {field} is not positive"
        yield from _retries_and_endings(where, spec)


def _retries_and_endings(where: str, spec: Document) -> Iterator[str]:
    mode, shutdown = spec.get("submissionMode"), spec.get("shutdownAfterJobFinishes", False)
    if spec.get("backoffLimit", 0) > 0:
        if spec.get("clusterSelector"):
            yield f"{where}: backoffLimit needs a cluster of its own, not a clusterSelector"
        if mode == "InteractiveMode":
            yield f"{where}: InteractiveMode knows no backoffLimit"
    if not shutdown:
        if spec.get("ttlSecondsAfterFinished", 0) > 0:
            yield f"{where}: ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
        if spec.get("suspend"):
            yield f"{where}: suspend needs shutdownAfterJobFinishes"
    elif spec.get("deletionStrategy", {}).get("deletionRules"):
        yield f"{where}: deletionRules exclude shutdownAfterJobFinishes"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield f"{where}: SidecarMode takes no submitter template or configuration"


def no_container_of_the_operators_making(documents: list[Document]) -> Iterator[str]:
    """KubeRay's default submitter has no security context."""
    for job in of_kind(documents, "RayJob"):
        mode = job["spec"].get("submissionMode", "K8sJobMode")
        bare = mode == "K8sJobMode" and "submitterPodTemplate" not in job["spec"]
        if bare or mode == "SidecarMode":
            yield f"RayJob {job['metadata']['name']}: {mode} adds a submitter we do not confine"


def raycluster_fields_fit(documents: list[Document]) -> Iterator[str]:
    for job in of_kind(documents, "RayJob"):
        where, cluster = f"RayJob {job['metadata']['name']}", job["spec"]["rayClusterSpec"]
        auth, version = cluster.get("authOptions", {}), cluster.get("rayVersion", "0.0")
        if auth.get("mode") not in ("token", "disabled"):
            yield f"{where}: authOptions.mode is not set"
        elif auth["mode"] == "token" and tuple(map(int, version.split(".")[:2])) < AUTH_SINCE:
            yield f"{where}: authOptions.mode token needs rayVersion 2.52 or later"
        if auth.get("enableK8sTokenAuth"):
            yield f"{where}: enableK8sTokenAuth is not for RayJob"
        if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield f"{where}: head without num-cpus 0 would take training workers"
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
            name, start = group.get("groupName", "head"), group.get("rayStartParams", {})
            amounts = start.keys() & {"num-cpus", "num-gpus", "memory", "resources"}
            if amounts and group.get("resources"):
                yield f"{where}, {name}: resources in rayStartParams and beside them"
            if "labels" in start:
                yield f"{where}, {name}: labels in rayStartParams"
        for group in cluster.get("workerGroupSpecs", []):
            name, low, high = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
            if low is None or high is None or not 0 <= low <= group.get("replicas", low) <= high:
                yield f"{where}, {name}: not 0 <= minReplicas <= replicas <= maxReplicas"


def labels_are_ours(documents: list[Document]) -> Iterator[str]:
    for job in of_kind(documents, "RayJob"):
        for group, template in ray_templates(job["spec"]["rayClusterSpec"]):
            for label in RESERVED_LABELS:
                if label in template.get("metadata", {}).get("labels", {}):
                    yield f"RayJob {job['metadata']['name']}, {group}: {label} hides the head"


def drain_ends_before_the_kill(documents: list[Document]) -> Iterator[str]:
    for pod in ray_pods(documents):
        for where, container in pod.containers():
            drain = environment(documents, container).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
            if drain is None:
                yield f"{where}: Ray's default drain of 30 s leaves training no time"
            elif float(drain) >= pod.spec.get("terminationGracePeriodSeconds", 30):
                yield f"{where}: killed before its drain of {drain} s ends"


def budgets_can_be_worked_out(documents: list[Document]) -> Iterator[str]:
    """Pods of a RayCluster have no scale subresource: only a whole minAvailable means anything."""
    replicas = {
        group["groupName"]: group["replicas"]
        for job in of_kind(documents, "RayJob")
        for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    for budget in of_kind(documents, "PodDisruptionBudget"):
        where, least = budget["metadata"]["name"], budget["spec"].get("minAvailable")
        selector = budget["spec"]["selector"]["matchLabels"].items()
        if not isinstance(least, int) or "maxUnavailable" in budget["spec"]:
            yield f"budget {where}: needs minAvailable as a number"
            continue
        for pod in ray_pods(documents):
            count = replicas.get(pod.where.rpartition("group ")[2])
            selected = selector <= pod.metadata.get("labels", {}).items()
            if selected and count is not None and least != count - 1:
                yield f"budget {where}: {least} of {count} workers; expected all but one"


def ray_pods(documents: list[Document]) -> Iterator[Pod]:
    for pod in pods(of_kind(documents, "RayJob")):
        if not pod.where.endswith("submitter"):
            yield pod


def environment(documents: list[Document], container: Document) -> dict[str, str]:
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if reference := source.get("configMapRef"):
            values |= find(documents, "ConfigMap", reference["name"])["data"]
    return values | {v["name"]: v["value"] for v in container.get("env", []) if "value" in v}


OPERATOR_RULES: tuple[Rule, ...] = (
    rayjob_fields_fit,
    no_container_of_the_operators_making,
    raycluster_fields_fit,
    labels_are_ours,
    drain_ends_before_the_kill,
    budgets_can_be_worked_out,
)
