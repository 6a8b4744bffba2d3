"""Which rank this process is, and the process group that it joins."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from rebias_dist.errors import ConfigError, PlacementError, RankError, RebiasError
from rebias_dist.runtime.consensus import Consensus

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# A stopped peer must end a command in minutes, not in the 30 that torch waits by default.
_MINUTES = 10.0


@dataclass(frozen=True)
class Placement:
    """The place of this process among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int


def resolve_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Read torchrun's variables; none of them means a single process.

    Inside a process group that exists already, as in a notebook or a test, it decides.

    Raises:
        ConfigError: only a part of the variables is set, or one is not a number.
    """
    if dist.is_initialized():
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        return Placement(dist.get_rank(), dist.get_world_size(), local_rank)
    # MASTER_ADDR and MASTER_PORT alone are left over in many shells and decide nothing.
    if not any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return Placement(0, 1, 0)
    missing = [name for name in _TORCHRUN if name not in environment]
    if missing:
        given = [name for name in _TORCHRUN if name in environment]
        raise ConfigError(
            f"{', '.join(missing)} missing from the environment beside {', '.join(given)}; "
            "start with torchrun, or unset them all for a single process"
        )
    try:
        rank, world, local = (int(environment[name]) for name in _TORCHRUN[:3])
    except ValueError:
        values = ", ".join(f"{name}={environment[name]!r}" for name in _TORCHRUN[:3])
        raise ConfigError(f"{values}: whole numbers are needed") from None
    if not 0 <= rank < world:
        raise ConfigError(f"RANK={rank} lies outside WORLD_SIZE={world}")
    return Placement(rank, world, local)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return this rank's device: the CPU, or the CUDA device of its local rank."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PlacementError("device: cuda is not available here; use device: cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise PlacementError(
            f"device: local rank {local_rank} has no CUDA device of its own among "
            f"{torch.cuda.device_count()}; start fewer ranks on this node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(
    placement: Placement, device: torch.device, minutes: float = _MINUTES
) -> Iterator[Consensus]:
    """Join the process group (none for a single process) and yield what decides jointly in it.

    An existing group, as in a notebook or a test, is used and left alone.

    Args:
        placement: of this process.
        device: of this process; it chooses the backend.
        minutes: how long ranks wait for each other, until :func:`set_time_out` says otherwise.
    """
    patience = timedelta(minutes=minutes)
    if placement.world_size == 1:
        yield Consensus()
        return
    if dist.is_initialized():
        gloo = dist.get_backend() == "gloo"
        yield Consensus(None if gloo else _gloo_group(patience))
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            timeout=patience,
            rank=placement.rank,
            world_size=placement.world_size,
            device_id=device if backend == "nccl" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise _not_together(placement, minutes, error) from None
    group = _gloo_group(patience) if backend == "nccl" else None
    try:
        yield Consensus(group)
    except RebiasError:
        _leave()
        raise
    # Any other exception is this rank's alone: leaving in good order could wait for the others
    # for ever, so that is left to the launcher.
    dist.barrier(group)
    _leave()


def _not_together(placement: Placement, minutes: float, error: Exception) -> RankError:
    where = f"rank {placement.rank}, start"
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    reason = next(iter(str(error).splitlines()), "")
    if "EADDRINUSE" in str(error):
        return RankError(f"{where}: MASTER_PORT {port} is in use on this machine; choose another")
    return RankError(
        f"{where}: the {placement.world_size} ranks did not come together at {address}:{port} "
        f"within {minutes:g} minutes ({reason}); see what became of the others, or whether "
        "they reach this address"
    )


def set_time_out(consensus: Consensus, minutes: float) -> None:
    """Set how long the ranks wait for each other from now on, in minutes."""
    if consensus.world_size > 1:
        for group in {dist.group.WORLD, consensus.group} - {None}:
            dist.set_timeout(timedelta(minutes=minutes), group)


def _gloo_group(patience: timedelta) -> dist.ProcessGroup:
    # Decisions are taken on the host; with NCCL they need a group of their own.
    group = dist.new_group(backend="gloo", timeout=patience)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _leave() -> None:
    # DDP's reducers sit in reference cycles. One that outlives the group is freed when the
    # interpreter ends, together with gloo's threads, and that has been seen to abort the process.
    gc.collect()
    dist.destroy_process_group()
