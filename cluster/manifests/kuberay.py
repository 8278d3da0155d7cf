"""A KubeRay RayJob: a cluster of its own for one study, with autoscaling groups of workers.

Fields as in the resource `ray.io/v1` RayJob of KubeRay 1.6 and newer (helm-chart/kuberay-operator/crds).
"""

from __future__ import annotations

from typing import Any

from cluster.manifests.description import Description, Head, WorkerGroup
from cluster.manifests.inputs import StudyFile, Versions, check_trials_fit
from cluster.manifests.quantities import mebibytes
from cluster.manifests.text import NODE_ENVIRONMENT, search_command, to_yaml

_STUDY = "/etc/routefront"
_CLUSTER = "routefront/cluster"
"""The label of a cluster's own pods."""
_LEAST = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What a container may do beyond reading and writing: nothing."""


def render(description: Description, study: StudyFile, versions: Versions) -> str:
    """A ConfigMap with the study file, a NetworkPolicy, and the RayJob that runs the study.

    Raises `ValueError` where the description lacks what Kubernetes needs.
    """
    _check(description)
    check_trials_fit(description, study)
    labels = {"app.kubernetes.io/name": "routefront", "app.kubernetes.io/instance": description.name}
    namespace = description.kubernetes.namespace
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{description.name}-study", "namespace": namespace, "labels": labels},
        "data": {"study.toml": study.text},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": description.name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {
                "routefront/version": versions.routefront,
                "routefront/python": versions.python,
                "routefront/study": study.name,
            },
        },
        "spec": {
            "entrypoint": search_command(description, f"{_STUDY}/study.toml", "auto"),
            "submissionMode": "K8sJobMode",
            # A new cluster after a failure; the study of that name goes on where it was.
            "backoffLimit": description.kubernetes.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": description.kubernetes.keep_cluster,
            "rayClusterSpec": _cluster(description, versions),
        },
    }
    return to_yaml(config, _fence(description, labels), job, comment=_comment(description, versions))


def _fence(description: Description, labels: dict[str, str]) -> dict[str, Any]:
    """Who reaches the cluster's pods, where whoever reaches Ray's ports runs code: they themselves, and on the port of
    Ray's jobs the pod that submits this one and KubeRay's operator.
    """
    name = description.name
    jobs = [{"protocol": "TCP", "port": 8265}]
    submits = {"ray.io/originated-from-cr-name": name, "ray.io/originated-from-crd": "RayJob"}
    operator = {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": description.kubernetes.namespace, "labels": labels},
        "spec": {
            "podSelector": {"matchLabels": {_CLUSTER: name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {_CLUSTER: name}}}]},
                {"from": [{"podSelector": {"matchLabels": submits}}], "ports": jobs},
                {"from": [{"namespaceSelector": {}, "podSelector": operator}], "ports": jobs},
            ],
        },
    }


def _check(description: Description) -> None:
    if description.image is None:
        raise ValueError("image is missing: Kubernetes needs one, such as image = 'registry.example.org/routefront:1'")
    if description.storage.claim is None and not description.storage.remote:
        raise ValueError(
            f"storage.claim is missing: pods share {description.storage.path!r} only through a PersistentVolumeClaim"
            " that many nodes may write (ReadWriteMany)"
        )
    spot = [name for name, group in description.workers.items() if group.spot]
    if spot and not description.kubernetes.spot_selector:
        raise ValueError(
            f"workers.{spot[0]}.spot = true needs kubernetes.spot_selector, the label of spot nodes in that cluster,"
            " such as { 'karpenter.sh/capacity-type' = 'spot' }"
        )


def _cluster(description: Description, versions: Versions) -> dict[str, Any]:
    auth: dict[str, Any] = {"mode": "token"}
    if description.kubernetes.token_secret:
        auth["secretName"] = description.kubernetes.token_secret
    groups = {name: group for name, group in description.workers.items() if group.max}
    return {
        "rayVersion": versions.ray,
        "authOptions": auth,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": description.idle_timeout,
            "securityContext": _LEAST,
        },
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _head_pod(description)},
        "workerGroupSpecs": [
            {
                "groupName": name,
                "replicas": group.start,
                "minReplicas": group.min,
                "maxReplicas": group.max,
                "rayStartParams": {},
                "template": _worker_pod(description, group),
            }
            for name, group in groups.items()
        ],
    }


def _head_pod(description: Description) -> dict[str, Any]:
    head = description.head
    # Only the driver, which runs in this container, speaks to databases.
    secrets = [part.secret for part in (description.journal, description.tracking) if part and part.secret]
    container = _container("ray-head", description, _amounts(head), secrets)
    container["ports"] = [
        {"containerPort": 6379, "name": "gcs-server"},
        {"containerPort": 8265, "name": "dashboard"},
        {"containerPort": 10001, "name": "client"},
    ]
    container["volumeMounts"] = [*container["volumeMounts"], {"name": "study", "mountPath": _STUDY, "readOnly": True}]
    pod = _pod(description, container, head.selector)
    pod["spec"]["volumes"] = [
        *pod["spec"]["volumes"],
        {"name": "study", "configMap": {"name": f"{description.name}-study"}},
    ]
    return pod


def _worker_pod(description: Description, group: WorkerGroup) -> dict[str, Any]:
    kubernetes = description.kubernetes
    amounts = _amounts(group)
    tolerations = []
    if group.gpus:
        amounts[kubernetes.gpu_resource] = str(group.gpus)
        tolerations.append({"key": kubernetes.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    selector = dict(group.selector)
    if group.spot:
        selector |= kubernetes.spot_selector
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in kubernetes.spot_selector.items()
        ]
    pod = _pod(description, _container("ray-worker", description, amounts, []), selector)
    pod["spec"]["automountServiceAccountToken"] = False  # only the head's autoscaler asks Kubernetes for anything
    if tolerations:
        pod["spec"]["tolerations"] = tolerations
    return pod


def _amounts(node: Head | WorkerGroup) -> dict[str, str]:
    return {"cpu": str(node.cpus), "memory": f"{mebibytes(node.memory)}Mi"}


def _container(name: str, description: Description, amounts: dict[str, str], secrets: list[str]) -> dict[str, Any]:
    environment = {**NODE_ENVIRONMENT, "ROUTEFRONT_DATA": description.data}
    sources = [*secrets, *([description.storage.secret] if description.storage.secret else [])]
    container: dict[str, Any] = {
        "name": name,
        "image": description.image,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        # Requests equal limits: Ray offers what the limits say, and a trial is measured against it.
        "resources": {"limits": amounts, "requests": amounts},
        "securityContext": _LEAST,
        "volumeMounts": [],
    }
    if sources:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in sources]
    if description.storage.claim:
        container["volumeMounts"] = [{"name": "storage", "mountPath": description.storage.path}]
    return container


def _pod(description: Description, container: dict[str, Any], selector: dict[str, str]) -> dict[str, Any]:
    kubernetes, claim = description.kubernetes, description.storage.claim
    spec: dict[str, Any] = {
        "containers": [container],
        # The user of the container recipe; the group may write to the shared volume.
        "securityContext": {
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 60,
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": claim}}] if claim else [],
    }
    if selector:
        spec["nodeSelector"] = selector
    if kubernetes.service_account:
        spec["serviceAccountName"] = kubernetes.service_account
    if kubernetes.pull_secret:
        spec["imagePullSecrets"] = [{"name": kubernetes.pull_secret}]
    return {"metadata": {"labels": {_CLUSTER: description.name}}, "spec": spec}


def _comment(description: Description, versions: Versions) -> str:
    """What has to be there before, and how to start, follow and stop."""
    name, space = description.name, description.kubernetes.namespace
    create = f"  kubectl -n {space} create secret generic"
    secrets = [
        (description.journal, "postgres.env", "PGHOST=... PGUSER=... PGPASSWORD=... PGDATABASE=..."),
        (description.tracking, "mlflow.env", "MLFLOW_TRACKING_URI=... (_USERNAME, _PASSWORD)"),
        (description.storage, "storage.env", "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."),
    ]
    once = [
        f"{create} {part.secret} --from-env-file={file}    # {keys}"
        for part, file, keys in secrets
        if part and part.secret
    ]
    if token := description.kubernetes.token_secret:
        once.append(f'{create} {token} --from-literal=auth_token="$(openssl rand -hex 32)"')
    lines = [
        f"Rendered by {versions} for KubeRay >= 1.6.",
        *(["Once:", *once] if once else []),
        "Start, follow, stop (applied again, the study goes on):",
        "  kubectl apply -f THIS_FILE",
        f"  kubectl -n {space} get rayjob {name} --watch",
        f"  kubectl -n {space} logs --follow job/{name}",
        f"  kubectl -n {space} delete rayjob {name}",
    ]
    return "\n".join(lines)
