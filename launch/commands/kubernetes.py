"""Train on Kubernetes: make a JobSet, one pod for each node, and submit it with kubectl.

The JobSet has the name of the run. When a pod is preempted or lost, the run saves if it can, all
pods start anew, and the run goes on from its newest checkpoint. 'kubectl delete jobset NAME' lets
it save and leave; the same command then goes on. --dry-run prints the manifest, which can be
edited and submitted with 'kubectl create -f'. The cluster needs JobSet (jobset.sigs.k8s.io). This
command was not yet tried on a cluster.
"""

from __future__ import annotations

import argparse
import re
from pathlib import PurePosixPath

from launch.commands.several_nodes import add_run, ranks_per_node, resolve_run
from launch.kubernetes.jobset import (
    WORK,
    Pods,
    Volume,
    check_image,
    check_label,
    check_name,
    check_quantity,
    manifest,
    parse_volume,
    to_manifest_yaml,
)
from launch.record.jobs import ask_scheduler
from rebias_dist.config.files import to_yaml
from rebias_dist.config.schema import Config
from rebias_dist.errors import EXIT_FINISHED, ConfigError
from rebias_dist.runs.run_folder import fresh_name

EXAMPLES = """
rebias-launch kubernetes imagenet9/rebias_n512 --name large --nodes 4 --gpus-per-node 8 --image registry.example/rebias:1 --volume work:/work --set data.root=/work/shards/imagenet9
rebias-launch kubernetes biased_mnist/demo --cpu --ranks-per-node 2 --image rebias:1 --volume work:/work --dry-run
"""  # noqa: E501

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``kubernetes``."""
    add_run(parser)
    parser.add_argument("--image", required=True, help="image of launch/Dockerfile, or one like it")
    parser.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="CLAIM:/PATH[:ro]",
        help="a PersistentVolumeClaim that all pods share, and its place; may be repeated. The "
        f"runs must lie on one; relative paths start from {WORK}",
    )
    parser.add_argument("--namespace", metavar="NAME", help="namespace [kubectl's]")
    parser.add_argument("--queue", metavar="NAME", help="queue of Kueue, if the cluster has it")
    parser.add_argument("--memory", metavar="SIZE", help="memory of a pod, such as 256Gi")
    parser.add_argument("--shm", default="8Gi", metavar="SIZE", help="size of /dev/shm [8Gi]")
    parser.add_argument(
        "--user", default="1000:1000", metavar="UID:GID", help="user and group [1000:1000]"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the pods, such as NCCL_SOCKET_IFNAME=eth0; may be repeated",
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=120,
        metavar="SECONDS",
        help="time to save and leave in, when a pod must go [120]",
    )
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="restarts in all [100]"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the manifest and stop")


def run(arguments: argparse.Namespace) -> int:
    """Submit a run."""
    pods = _pods(arguments)
    config = _resolve(arguments, pods)
    name = str(config.name)
    training = [f"--resume-override={key}" for key in arguments.resume_override]
    text = to_manifest_yaml(manifest(name, to_yaml(config), training, pods))
    if arguments.dry_run:
        print(text, end="")
        return EXIT_FINISHED
    where = f" --namespace={pods.namespace}" if pods.namespace else ""
    try:
        # 'create' refuses a JobSet that exists; 'apply' would try to change it.
        ask_scheduler("kubectl", "create", "--filename=-", timeout=120.0, given=text)
    except ConfigError as error:
        if "AlreadyExists" not in str(error):
            raise
        raise ConfigError(
            f"name: JobSet {name} exists; 'kubectl{where} delete jobset {name}' removes it, and "
            "the run goes on with the same command"
        ) from None
    print(f"submitted JobSet {name}; its runs are in {config.runs_dir} of the volumes")
    chosen = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
    print(f"kubectl{where} logs --follow --selector={chosen}")
    return EXIT_FINISHED


def _pods(arguments: argparse.Namespace) -> Pods:
    """Return what the pods are given, checked."""
    if not 1 <= arguments.grace <= 86400:
        raise ConfigError(f"--grace: {arguments.grace} is out of range; use 1 to 86400 seconds")
    if arguments.max_restarts < 0:
        raise ConfigError(f"--max-restarts: {arguments.max_restarts} is negative; use 0 or more")
    user = re.fullmatch(r"([1-9][0-9]{0,8}):([0-9]{1,9})", arguments.user)
    if not user:
        raise ConfigError(f"--user: {arguments.user!r} is not UID:GID of a user other than root")
    ranks = ranks_per_node(arguments)
    cpus = arguments.cpus_per_rank
    environment = {} if cpus is None else {"OMP_NUM_THREADS": str(cpus)}
    for setting in arguments.env:
        key, equals, value = setting.partition("=")
        if not equals or not _VARIABLE.fullmatch(key) or not value.isprintable():
            raise ConfigError(f"--env: {setting!r} is not NAME=VALUE")
        environment[key] = value
    memory, namespace, queue = arguments.memory, arguments.namespace, arguments.queue
    volumes = [parse_volume(text) for text in arguments.volume]
    for path in {volume.path for volume in volumes}:
        if sum(volume.path == path for volume in volumes) > 1:
            raise ConfigError(f"--volume: {path} is given twice")
    return Pods(
        image=check_image(arguments.image),
        nodes=arguments.nodes,
        ranks=ranks,
        gpus=0 if arguments.cpu else ranks,
        volumes=volumes,
        shm=check_quantity("--shm", arguments.shm),
        user=int(user[1]),
        group=int(user[2]),
        grace=arguments.grace,
        max_restarts=arguments.max_restarts,
        memory=None if memory is None else check_quantity("--memory", memory),
        cpus=None if cpus is None else cpus * ranks,
        namespace=None if namespace is None else check_label("--namespace", namespace),
        queue=None if queue is None else check_label("--queue", queue),
        environment=environment,
    )


def _resolve(arguments: argparse.Namespace, pods: Pods) -> Config:
    """Return the run's configuration, with a name and a folder on one of the volumes."""
    config = resolve_run(arguments, "kubernetes")
    # The names of methods have '_', which the name of a JobSet may not have.
    name = check_name(config.name or fresh_name(config).replace("_", "-"))
    runs_dir = WORK / config.runs_dir
    volume = _volume_of(runs_dir, pods)
    if volume is None or volume.read_only or ".." in runs_dir.parts:
        raise ConfigError(
            f"runs_dir: {runs_dir} is on no volume that can be written, so the run would be lost "
            "with its pod; use --volume CLAIM:/PATH and a --runs-dir below it"
        )
    return config.model_copy(update={"name": name, "runs_dir": str(runs_dir)})


def _volume_of(folder: PurePosixPath, pods: Pods) -> Volume | None:
    """Return the volume that a folder lies on: the innermost, as for any mount."""
    holding = [volume for volume in pods.volumes if folder.is_relative_to(volume.path)]
    return max(holding, key=lambda volume: len(volume.path), default=None)
