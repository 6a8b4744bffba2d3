"""The JobSet of a run: a Job with one pod for each node, in which torchrun starts the ranks.

JobSet (https://jobset.sigs.k8s.io, v1alpha2) gives the pods the two things that torchrun needs, a
number and the name of the first pod, and starts all of them anew when one is lost. A TrainJob of
Kubeflow Trainer becomes a JobSet too, but needs a runtime that an administrator installs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from rebias_dist.errors import EXIT_GIVE_UP, EXIT_USAGE, ConfigError

WORK = PurePosixPath("/work")
"""The working folder of the image, from which relative paths start."""

_CONFIG = "rebias-dist/config"  # the annotation of the pods that holds the configuration
_CONFIG_FOLDER = "/etc/rebias"
_PORT = 29500
_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # RFC 1123
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,499}")
_QUANTITY = re.compile(r"[1-9][0-9]{0,9}(\.[0-9]+)?([kMGT]|[KMGT]i)?")
# The pods are called <name>-node-0-<number>-<5 signs>, with at most 63 signs.
_LONGEST_NAME = 44


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim and where the pods see it."""

    claim: str
    path: str
    read_only: bool


@dataclass(frozen=True)
class Pods:
    """What the pods of a run are given; all values have been checked."""

    image: str
    nodes: int
    ranks: int
    """Ranks of a pod."""
    gpus: int
    """GPUs of a pod."""
    volumes: Sequence[Volume]
    shm: str
    """Size of /dev/shm."""
    user: int
    group: int
    grace: int
    """Seconds to save and leave in."""
    max_restarts: int
    memory: str | None = None
    cpus: int | None = None
    namespace: str | None = None
    queue: str | None = None
    """LocalQueue of Kueue."""
    environment: Mapping[str, str] = field(default_factory=dict)


def check_label(flag: str, text: str, longest: int = 63) -> str:
    """Return a name that Kubernetes takes as one label of RFC 1123; ConfigError for another."""
    if not _LABEL.fullmatch(text) or len(text) > longest:
        raise ConfigError(
            f"{flag}: {text!r} is not a name of RFC 1123; use lower-case letters, digits and '-', "
            f"at most {longest} of them"
        )
    return text


def check_name(name: str) -> str:
    """Return a run's name if it can name a JobSet too; ConfigError for another."""
    if name[0].isdecimal():
        raise ConfigError(f"name: {name!r} cannot name a service; begin with a letter")
    return check_label("name", name, _LONGEST_NAME)


def check_image(image: str) -> str:
    """Return the reference of an image; ConfigError for what cannot be one."""
    if not _IMAGE.fullmatch(image):
        raise ConfigError(f"--image: {image!r} is not an image; use REGISTRY/NAME:TAG")
    return image


def check_quantity(flag: str, text: str) -> str:
    """Return an amount of memory in Kubernetes' notation; ConfigError for another."""
    if not _QUANTITY.fullmatch(text):
        raise ConfigError(f"{flag}: {text!r} is not an amount of memory; use one such as 64Gi")
    return text


def parse_volume(text: str) -> Volume:
    """Return the volume that ``CLAIM:/path`` or ``CLAIM:/path:ro`` names; ConfigError for others.

    A path has no parts '.' and '..', and no sign with a meaning to Kubernetes.
    """
    claim, colon, rest = text.partition(":")
    path, _, mode = rest.partition(":")
    known = colon and mode in ("", "ro") and _PATH.fullmatch(path)
    if not known or {".", ".."} & set(path.split("/")):
        raise ConfigError(f"--volume: {text!r} is not CLAIM:/path or CLAIM:/path:ro")
    return Volume(check_label("--volume", claim), path, mode == "ro")


def manifest(name: str, config: str, training: Sequence[str], pods: Pods) -> dict[str, Any]:
    """Return the JobSet of a run.

    Args:
        name: of the run and the JobSet.
        config: the run's configuration, as YAML.
        training: further arguments of the training.
        pods: what the pods are given.
    """
    metadata: dict[str, Any] = {"name": name}
    if pods.namespace is not None:
        metadata["namespace"] = pods.namespace
    if pods.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": pods.queue}
    # No pod is started alone: a run without one of its ranks cannot go on. A run that cannot
    # succeed says so by its exit code; all other ends are a start from the newest checkpoint.
    final = {"containerName": "train", "operator": "In", "values": [EXIT_USAGE, EXIT_GIVE_UP]}
    job = {
        "parallelism": pods.nodes,
        "completions": pods.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": {
            "metadata": {"annotations": {_CONFIG: config}},
            "spec": _pod(name, training, pods),
        },
    }
    rule = {
        "name": "final",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": pods.max_restarts, "rules": [rule]},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(name: str, training: Sequence[str], pods: Pods) -> dict[str, Any]:
    layout = [f"--nnodes={pods.nodes}", f"--nproc-per-node={pods.ranks}"]
    layout += [f"--master-addr={name}-node-0-0.{name}", f"--master-port={_PORT}"]
    config = f"{_CONFIG_FOLDER}/config.yaml"
    claims = list(dict.fromkeys(volume.claim for volume in pods.volumes))
    mounts = [
        {"name": f"claim-{claims.index(volume.claim)}", "mountPath": volume.path}
        | ({"readOnly": True} if volume.read_only else {})
        for volume in pods.volumes
    ]
    # The configuration comes with the pod, so that the JobSet is one object, complete in itself.
    at = {"path": "config.yaml", "fieldRef": {"fieldPath": f"metadata.annotations['{_CONFIG}']"}}
    container = {
        "name": "train",
        "image": pods.image,
        "command": ["python", "-m", "launch.kubernetes.node"],
        "args": [*layout, "--", f"--config={config}", *training],
        "workingDir": str(WORK),
        "env": [
            # Kubernetes replaces $(NAME) in a value.
            {"name": key, "value": value.replace("$", "$$")}
            for key, value in pods.environment.items()
        ],
        "resources": _resources(pods),
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            *mounts,
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        # 'kubectl describe pod' then shows the last lines of a container that failed.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return {
        "restartPolicy": "Never",  # as podFailurePolicy demands
        "terminationGracePeriodSeconds": pods.grace,
        "automountServiceAccountToken": False,
        # Otherwise a service with the name 'master' would set MASTER_PORT.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": pods.user,
            "runAsGroup": pods.group,
            "fsGroup": pods.group,
            # Otherwise each start would visit every file of the volumes.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "config", "downwardAPI": {"items": [at]}},
            # NCCL exchanges data of one node there; a container's own has 64 MiB.
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shm}},
            *(
                {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}}
                for number, claim in enumerate(claims)
            ),
        ],
    }


def _resources(pods: Pods) -> dict[str, dict[str, str]]:
    wanted = {"cpu": pods.cpus, "memory": pods.memory}
    requests = {key: str(value) for key, value in wanted.items() if value is not None}
    # The CPUs are not a limit: the kernel would stop a pod that uses more for a moment.
    limits = {key: value for key, value in requests.items() if key != "cpu"}
    limits |= {"nvidia.com/gpu": str(pods.gpus)} if pods.gpus else {}
    return {"requests": requests, "limits": limits}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def to_manifest_yaml(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as YAML."""
    return yaml.dump(dict(manifest), Dumper=_Dumper, sort_keys=False, width=100)
