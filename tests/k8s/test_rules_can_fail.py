"""Each rule and each schema refuses a manifest that was broken in one place."""

from typing import Any

import kubernetes_validate
import pytest

from tests.k8s.documents import Document, find, pods, render
from tests.k8s.test_manifests import KUBERNETES, RULES

JOB, MLFLOW, BUDGET = "RayJob/convnextv2", "Deployment/mlflow", "PodDisruptionBudget/workers"
SERVICE, SETTINGS = "Service/mlflow", "ConfigMap/settings"
CLUSTER = "spec rayClusterSpec"
HEAD = f"{CLUSTER} headGroupSpec"
HEAD_POD = f"{HEAD} template spec"
HEAD_BOX = f"{HEAD_POD} containers 0"
GROUP = f"{CLUSTER} workerGroupSpecs 0"
POD = f"{GROUP} template spec"
BOX = f"{POD} containers 0"
SERVER_POD = "spec template spec"
SERVER = f"{SERVER_POD} containers 0"
SUBMITTER = "spec submitterPodTemplate"
ENTRY = "spec entrypoint"

GONE: Any = object()
BARE_POD = {"spec": {"containers": [{"name": "submitter", "image": "busybox"}]}}
HOST_FOLDER = {"name": "nvme", "hostPath": {"path": "/mnt"}}
EPHEMERAL = {"name": "runs", "emptyDir": {}}
PASSWORD = {"name": "P", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "password"}}}
APART = "affinity podAntiAffinity requiredDuringSchedulingIgnoredDuringExecution 0 labelSelector"
DRAIN = "data RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
RUN = "convnextv2 run"

# Rule: (its words, the document, the place in it, what to put there).
BREAKS: dict[str, list[tuple[str, str, str, Any]]] = {
    "pods_are_confined": [
        ("may run as root", JOB, f"{HEAD_POD} securityContext runAsNonRoot", GONE),
        ("may run as root", MLFLOW, f"{SERVER_POD} securityContext runAsUser", 0),
        ("submitter: may run as root", JOB, SUBMITTER, BARE_POD),
        ("no seccomp profile", JOB, f"{POD} securityContext seccompProfile", GONE),
        ("gets a token", JOB, f"{POD} automountServiceAccountToken", GONE),
        ("hostIPC", JOB, f"{POD} hostIPC", True),
        ("folder of the host", JOB, f"{POD} volumes +", HOST_FOLDER),
    ],
    "containers_are_confined": [
        ("privileged", JOB, f"{BOX} securityContext privileged", True),
        ("escalate", MLFLOW, f"{SERVER} securityContext allowPrivilegeEscalation", GONE),
        ("capabilities", JOB, f"{HEAD_BOX} securityContext capabilities add", ["SYS_ADMIN"]),
        ("runs as root", JOB, f"{HEAD_BOX} securityContext runAsUser", 0),
        ("submitter: may escalate", JOB, SUBMITTER, BARE_POD),
    ],
    "containers_are_bounded": [
        ("no cpu limit", JOB, f"{BOX} resources limits cpu", GONE),
        ("copy: no memory request", JOB, f"{POD} initContainers", [{"name": "copy"}]),
        ("submitter: no cpu request", JOB, SUBMITTER, BARE_POD),
        ("requests more memory", JOB, f"{HEAD_BOX} resources requests memory", "97Gi"),
        ("GPUs", JOB, f"{BOX} resources requests nvidia.com/gpu", "4"),
    ],
    "images_are_pinned": [
        ("names no version", JOB, f"{HEAD_BOX} image", "host:5000/convnextv2"),
        ("names no version", MLFLOW, f"{SERVER} image", "convnextv2:latest"),
    ],
    "references_resolve": [
        ("Claim nowhere", JOB, f"{HEAD_POD} volumes 0 persistentVolumeClaim claimName", "nowhere"),
        ("ConfigMap nowhere", JOB, f"{HEAD_BOX} envFrom 0 configMapRef name", "nowhere"),
        ("Secret nowhere", MLFLOW, f"{SERVER} env +", PASSWORD),
        ("ServiceAccount nowhere", MLFLOW, f"{SERVER_POD} serviceAccountName", "nowhere"),
    ],
    "mounts_resolve": [
        ("no volume of its pod", MLFLOW, f"{SERVER} volumeMounts 0 name", "nowhere"),
        ("/dev/shm", JOB, f"{POD} volumes 2 emptyDir sizeLimit", GONE),
        ("/dev/shm", JOB, f"{POD} volumes 2 emptyDir sizeLimit", "800Gi"),
    ],
    "selectors_match": [
        ("Service mlflow", SERVICE, "spec selector", {"app": "mlflow"}),
        ("Budget workers", BUDGET, "spec selector matchLabels", {"app": "ray"}),
        ("affinity", JOB, f"{POD} {APART} matchLabels", {"app": "ray"}),
    ],
    "services_reach_a_port": [
        ("no container has port", SERVICE, "spec ports 0 targetPort", "web"),
    ],
    "ray_fields_are_known": [
        ("no field backofLimit", JOB, "spec backofLimit", 3),
        ("no field replicaCount", JOB, f"{GROUP} replicaCount", 8),
        ("head: KubeRay knows no field replicas", JOB, f"{HEAD} replicas", 1),
        ("no field token", JOB, f"{CLUSTER} authOptions token", "a"),
        ("backoffLimit is '3'", JOB, "spec backoffLimit", "3"),
        ("replicas is True", JOB, f"{GROUP} replicas", True),
        ("suspend is 1", JOB, f"{CLUSTER} suspend", 1),
        ("groupName is missing", JOB, f"{GROUP} groupName", GONE),
        ("headGroupSpec is missing", JOB, HEAD, GONE),
    ],
    "rayjob_fields_fit": [
        ("DNS-1035", JOB, "metadata name", "a" * 48),
        ("DNS-1035", JOB, "metadata name", "8-workers"),
        ("submissionMode is none", JOB, "spec submissionMode", "K8SJobMode"),
        ("neither", JOB, "spec rayClusterSpec", GONE),
        ("backoffLimit is negative", JOB, "spec backoffLimit", -1),
        ("not positive", JOB, "spec preRunningDeadlineSeconds", 0),
        ("InteractiveMode knows no", JOB, "spec submissionMode", "InteractiveMode"),
        ("not a clusterSelector", JOB, "spec clusterSelector", {"ray.io/cluster": "other"}),
        ("ttlSecondsAfterFinished needs", JOB, "spec shutdownAfterJobFinishes", False),
        ("deletionRules exclude", JOB, "spec deletionStrategy deletionRules", [{"policy": "x"}]),
    ],
    "no_container_of_the_operators_making": [
        ("K8sJobMode", JOB, "spec submissionMode", GONE),
        ("SidecarMode", JOB, "spec submissionMode", "SidecarMode"),
    ],
    "raycluster_fields_fit": [
        ("authOptions.mode is not set", JOB, f"{CLUSTER} authOptions", GONE),
        ("2.52 or later", JOB, f"{CLUSTER} rayVersion", "2.51.1"),
        ("num-cpus 0", JOB, f"{HEAD} rayStartParams num-cpus", GONE),
        ("beside them", JOB, f"{HEAD} resources", {"CPU": "1"}),
        ("labels in rayStartParams", JOB, f"{GROUP} rayStartParams labels", "a=b"),
        ("minReplicas", JOB, f"{GROUP} minReplicas", 9),
        ("minReplicas", JOB, f"{GROUP} maxReplicas", GONE),
    ],
    "labels_are_ours": [
        ("hides", JOB, f"{HEAD} template metadata labels app.kubernetes.io/name", "convnextv2"),
    ],
    "drain_ends_before_the_kill": [
        ("killed before", JOB, f"{POD} terminationGracePeriodSeconds", GONE),
        ("default drain", SETTINGS, DRAIN, GONE),
        ("killed before", SETTINGS, DRAIN, "180"),
    ],
    "budgets_can_be_worked_out": [
        ("as a number", BUDGET, "spec minAvailable", "90%"),
        ("as a number", BUDGET, "spec maxUnavailable", 1),
        ("7 of 6 workers", JOB, f"{GROUP} replicas", 6),
    ],
    "entrypoint_runs": [
        ("not our command", JOB, ENTRY, "python train.py"),
        ("does not understand", JOB, ENTRY, f"{RUN} --fast"),
        ("unknown preset", JOB, ENTRY, f"{RUN} imagenet2k --run-dir /runs/a"),
        ("unknown key", JOB, ENTRY, f"{RUN} demo --run-dir /runs/a --set cluster.gpus=2"),
        ("pretrain:", JOB, ENTRY, f"{RUN} demo --run-dir /runs/a --set cluster.num_workers=63"),
    ],
    "paths_are_mounted": [
        ("/scratch/a is under no", JOB, ENTRY, f"{RUN} demo --run-dir /scratch/a"),
        ("/data/imagenet is under no", JOB, f"{BOX} volumeMounts 1 mountPath", "/images"),
        ("/var/trace is under no", SETTINGS, "data TORCH_FR_DUMP_TEMP_FILE", "/var/trace"),
        ("read-only", JOB, f"{BOX} volumeMounts 0 readOnly", True),
        ("lost with the pod", JOB, f"{HEAD_POD} volumes 0", EPHEMERAL),
    ],
    "tracking_server_answers": [
        ("is no Service", SERVICE, "metadata name", "tracking"),
        ("is no Service", SERVICE, "spec ports 0 port", 80),
        ("refuses mlflow:5000", MLFLOW, f"{SERVER} args", ["--allowed-hosts=localhost:*"]),
    ],
    "workers_fit_the_cluster": [
        ("56 GPUs", JOB, f"{GROUP} replicas", 7),
        ("CPUs for 32 workers", JOB, f"{BOX} resources limits cpu", "48"),
    ],
}


def put(document: Document, path: str, value: Any) -> None:
    *above, last = path.split()
    place: Any = document
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if value is GONE:
        del place[last]
    elif last == "+":
        place.append(value)
    else:
        place[int(last) if isinstance(place, list) else last] = value


def broken(where: str, path: str, value: Any) -> list[Document]:
    documents = render("overlays/h100-8x8")
    put(find(documents, *where.split("/")), path, value)
    return documents


CASES = [(rule, *what) for rule, breaks in BREAKS.items() for what in breaks]


@pytest.mark.parametrize(("name", "words", "where", "path", "value"), CASES)
def test_rule_notices(name: str, words: str, where: str, path: str, value: Any) -> None:
    (rule,) = [rule for rule in RULES if rule.__name__ == name]
    assert list(rule(render("overlays/h100-8x8"))) == []
    assert words in "\n".join(rule(broken(where, path, value)))


def test_every_rule_is_seen_failing() -> None:
    assert set(BREAKS) == {rule.__name__ for rule in RULES}


def test_kubernetes_schema_refuses_a_misspelt_field() -> None:
    documents = broken(BUDGET, "spec minAvailabel", 7)
    with pytest.raises(kubernetes_validate.ValidationError, match="minAvailabel"):
        kubernetes_validate.validate(find(documents, *BUDGET.split("/")), KUBERNETES, strict=True)


def test_kubernetes_schema_refuses_a_misspelt_field_of_a_pod_inside_the_rayjob() -> None:
    documents = broken(JOB, f"{BOX} volumeMount", [])
    *_, workers = pods([find(documents, *JOB.split("/"))])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": workers.metadata, "spec": workers.spec}
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
