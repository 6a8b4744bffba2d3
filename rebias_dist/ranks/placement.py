"""Which rank this process is, by the environment variables of torchrun or SLURM.

This module does not import torch. The first rule that applies decides:

1. ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` are all set:
   torchrun started it, perhaps inside a SLURM job. Operators that start one process in each pod
   leave out ``LOCAL_RANK``; it is 0 if the node has one rank, or this process sees one GPU at most.
2. The process is a task of an srun step: one rank a task. The ranks meet on the step's first node,
   on a port computed from the numbers of job and step, unless ``MASTER_ADDR`` or ``MASTER_PORT``
   is set.
3. Otherwise it is a single process: on its own, or in the shell or batch script of a SLURM job,
   where srun or torchrun would start the ranks. One of several processes that mpirun started is
   refused, because each of them would train a run of its own.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rebias_dist.errors import PlacementError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
# SLURM uses the step ids from here on for the batch script and interactive shells.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# The number of processes that mpirun has started: Open MPI; MPICH and Intel MPI.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Below the ports that the system uses for outgoing connections (from 32768 on Linux).
_FIRST_PORT, _PORTS = 10_000, 20_000


@dataclass(frozen=True)
class Placement:
    """The place of this process among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    origin: str = "a single process"
    """What started the ranks, for the log."""
    address: str | None = None
    """Host where the ranks meet; None: torchrun's variables in the environment have it."""
    port: int | None = None


def resolve_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Return the place that the environment gives this process.

    Raises:
        PlacementError: variables are missing, contradict each other or are not numbers.
    """
    # Many shells have MASTER_ADDR and MASTER_PORT set for something else, so these do not decide.
    if any(name in environment for name in _TORCHRUN[:3]):
        return _of_torchrun(environment)
    if _in_step(environment):
        return _of_srun(environment)
    job = environment.get("SLURM_JOB_ID")
    _refuse_mpirun(environment)
    if job is None:
        return Placement(0, 1, 0)
    origin = f"a single process in SLURM job {job}{_restarts(environment)}"
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks != "1":
        origin += f" (srun would start {tasks} ranks)"
    return Placement(0, 1, 0, origin)


def is_rank_zero(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process prints for its run; works in a faulty environment too."""
    if "RANK" in environment:
        return environment["RANK"] == "0"
    return not _in_step(environment) or environment.get("SLURM_PROCID", "0") == "0"


def how_to_run_alone(environment: Mapping[str, str] = os.environ) -> str:
    """Return how a command runs as a single process in spite of this environment."""
    if any(name in environment for name in _TORCHRUN[:3]):
        return "env -u RANK -u WORLD_SIZE -u LOCAL_RANK COMMAND"
    return "env -u SLURM_STEP_ID -u SLURM_PROCID COMMAND"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that this process may use, as CUDA numbers them, without importing torch."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() and gpu != "-1"]
    devices = [name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]
    return [str(number) for number in range(len(devices))]


# ---------------------------------------------------------------- torchrun


def _of_torchrun(environment: Mapping[str, str]) -> Placement:
    starter = "torchrun"
    if "LOCAL_RANK" not in environment:
        of_node = environment.get("LOCAL_WORLD_SIZE")
        if of_node == "1" or (of_node is None and len(visible_gpus(environment)) <= 1):
            starter, environment = "RANK and WORLD_SIZE", {**environment, "LOCAL_RANK": "0"}
    _complete(environment, _TORCHRUN, "start with torchrun, or unset them all for a single process")
    rank, world, local = _numbers(environment, _TORCHRUN[:3])
    if not 0 <= rank < world:
        raise PlacementError(f"RANK={rank} lies outside WORLD_SIZE={world}")
    local_world = world
    if "LOCAL_WORLD_SIZE" in environment:
        (local_world,) = _numbers(environment, ["LOCAL_WORLD_SIZE"])
    if not 0 <= local < local_world <= world:
        raise PlacementError(
            f"LOCAL_RANK={local}, LOCAL_WORLD_SIZE={local_world} and WORLD_SIZE={world} "
            "contradict each other"
        )
    _port(environment["MASTER_PORT"])
    origin = f"{starter}, {world} ranks"
    if _in_step(environment):
        _check_torchrun_in_step(environment, rank, world)
    if "SLURM_JOB_ID" in environment:
        origin += f", in SLURM job {environment['SLURM_JOB_ID']}{_restarts(environment)}"
    return Placement(rank, world, local, origin)


def _check_torchrun_in_step(environment: Mapping[str, str], rank: int, world: int) -> None:
    """Refuse a torchrun that ignores the other tasks: each task would train a separate run."""
    if not all(name in environment for name in ("SLURM_NTASKS", "SLURM_PROCID")):
        return
    tasks, task = _numbers(environment, ["SLURM_NTASKS", "SLURM_PROCID"])
    agents = environment.get("GROUP_WORLD_SIZE")
    if agents is not None and agents != str(tasks):
        raise PlacementError(
            f"srun started {tasks} tasks (SLURM_NTASKS), but torchrun counts {agents} nodes; use "
            "--nnodes=$SLURM_NNODES with one task a node, or start one task"
        )
    if world < tasks or (agents is None and world == tasks and rank != task):
        raise PlacementError(
            f"RANK={rank} of WORLD_SIZE={world} contradicts SLURM_PROCID={task} of "
            f"SLURM_NTASKS={tasks}; unset the variables of one of them"
        )


# ---------------------------------------------------------------- mpirun


def _refuse_mpirun(environment: Mapping[str, str]) -> None:
    for name in _MPI_SIZES:
        # srun sets the variables of MPICH too, also for a shell in which a single process is right.
        if name.startswith("PMI") and "SLURM_JOB_ID" in environment:
            continue
        if environment.get(name, "1") != "1":
            raise PlacementError(
                f"mpirun has started {environment[name]} processes ({name}), and each would be a "
                "run of its own; start them with torchrun or srun, or unset this variable for a "
                "single process"
            )


# ---------------------------------------------------------------- SLURM


def _in_step(environment: Mapping[str, str]) -> bool:
    step = environment.get("SLURM_STEP_ID", "")
    if step.isdecimal():
        return int(step) < _FIRST_SPECIAL_STEP
    # A batch script belongs to no step and has SLURM_PROCID=0.
    return "SLURM_STEP_ID" in environment or environment.get("SLURM_PROCID", "0") != "0"


def _of_srun(environment: Mapping[str, str]) -> Placement:
    lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    node_list = next((environment[name] for name in lists if name in environment), None)
    needed = [*_SRUN, *(["SLURM_JOB_NODELIST"] if node_list is None else [])]
    _complete(environment, needed, "start with srun, or with torchrun")
    assert node_list is not None
    job, step, rank, world, local = _numbers(environment, _SRUN)
    if not 0 <= rank < world:
        raise PlacementError(f"SLURM_PROCID={rank} lies outside SLURM_NTASKS={world}")
    if not 0 <= local <= rank:
        raise PlacementError(f"SLURM_LOCALID={local} contradicts SLURM_PROCID={rank}")
    of_step = environment.get("SLURM_STEP_NUM_TASKS", str(world))
    if of_step != str(world):
        raise PlacementError(f"SLURM_NTASKS={world} contradicts SLURM_STEP_NUM_TASKS={of_step}")
    ranks = f"{world} rank{'s' if world > 1 else ''}"
    origin = f"srun, {ranks} on {node_list} in SLURM job {job}{_restarts(environment)}"
    if world == 1:
        return Placement(0, 1, 0, origin)
    address = environment.get("MASTER_ADDR") or None
    if address in _LOOPBACK and environment.get("SLURM_STEP_NUM_NODES", "1") != "1":
        raise PlacementError(
            f"MASTER_ADDR={address} cannot be reached from the other nodes of {node_list}; unset it"
        )
    port = _FIRST_PORT + (job + 1009 * step) % _PORTS
    if environment.get("MASTER_PORT"):
        port = _port(environment["MASTER_PORT"])
    address = address or _reachable(first_host(node_list))
    return Placement(rank, world, local, origin, address=address, port=port)


def _restarts(environment: Mapping[str, str]) -> str:
    count = environment.get("SLURM_RESTART_COUNT", "0")
    return "" if count == "0" else f", restart {count}"


def first_host(node_list: str) -> str:
    """Return the first host of a list in SLURM's short form: rack2n04 of ``rack[2-3]n[04,07-09]``.

    Raises:
        PlacementError: it is not such a list.
    """
    if not re.fullmatch(r"(?:[\w.-]+|\[[\d,-]+\])(?:[\w.-]+|\[[\d,-]+\]|,)*", node_list):
        raise PlacementError(f"SLURM_JOB_NODELIST={node_list!r} is not a list of nodes")
    opened = re.sub(r"\[(\d+)[\d,-]*\]", r"\1", node_list)
    return opened.partition(",")[0]


def _reachable(host: str) -> str:
    """Return the host, or the address that SLURM has for it if its name cannot be resolved."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except OSError:
        pass
    command = ["scontrol", "show", "node", "--oneliner", host]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise PlacementError(
            f"{host}, the first node, cannot be resolved, and scontrol has no address for it "
            f"({error}); set MASTER_ADDR"
        ) from None
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    return found[1] if found else host


# ---------------------------------------------------------------- values


def _complete(environment: Mapping[str, str], names: Sequence[str], cure: str) -> None:
    missing = [name for name in names if name not in environment]
    if missing:
        given = [name for name in names if name in environment]
        raise PlacementError(
            f"{', '.join(missing)} missing from the environment beside {', '.join(given)}; {cure}"
        )


def _numbers(environment: Mapping[str, str], names: Sequence[str]) -> list[int]:
    try:
        return [int(environment[name]) for name in names]
    except ValueError:
        values = ", ".join(f"{name}={environment[name]!r}" for name in names)
        raise PlacementError(f"{values}: must be whole numbers") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise PlacementError(f"MASTER_PORT={text!r} is not a port; use a number from 1 to 65535")
    return int(text)
