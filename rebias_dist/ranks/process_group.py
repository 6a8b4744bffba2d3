"""The rank of this process, its device, and the process group that it joins."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rebias_dist.errors import InterruptedRun, PlacementError, RankError, RebiasError
from rebias_dist.ranks import placement
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.faults import reason
from rebias_dist.ranks.placement import Placement, how_to_run_alone
from rebias_dist.ranks.roll_call import call_the_roll, facts_of
from rebias_dist.ranks.versions import gloo_on_stderr, set_timeout
from rebias_dist.ranks.waits import told

# How long to wait for a peer that does not answer; torch's default is 30 minutes.
_MINUTES = 10.0
# After a hang on GPUs each rank writes its last collectives. Values that the user set are kept.
_NCCL_DEFAULTS = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_ENABLE_MONITORING": "1",
}


def resolve_placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Return this process's place in an existing process group, or that of the environment.

    Raises:
        PlacementError: variables are missing, contradict each other or are not numbers.
    """
    if dist.is_initialized():
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        origin = f"an existing process group of {dist.get_world_size()} ranks"
        return Placement(dist.get_rank(), dist.get_world_size(), local_rank, origin)
    return placement.resolve_placement(environment)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return this rank's device: the CPU, or the CUDA device of its local rank.

    If only one GPU is visible, it is used, because the launcher may have bound one to each rank.
    Ranks that share a GPU are refused when they meet; see ``roll_call``.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.
        local_rank: number of this process on its node.

    Raises:
        PlacementError: there is no CUDA, or no device for this rank.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PlacementError("device: cuda is not available here; use device: cpu or auto")
    count = torch.cuda.device_count()
    index = 0 if count == 1 else local_rank
    if index >= count:
        raise PlacementError(
            f"device: local rank {local_rank} has no CUDA device of its own among "
            f"{count}; start fewer ranks on this node"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(
    place: Placement,
    device: torch.device,
    minutes: float = _MINUTES,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Consensus]:
    """Join the process group and yield the ranks' :class:`Consensus`.

    A single process joins none. An existing group, as in a notebook or a test, is used and not
    ended. Before a group is formed, the ranks compare their software and settings; see
    ``roll_call``.

    Args:
        place: of this process.
        device: of this process; it determines the backend.
        minutes: how long ranks wait for each other, until :func:`set_time_out` is called.
        settings: by name; they must be the same on all ranks.

    Raises:
        ConfigError: the ranks differ.
        PlacementError: there are more processes than ranks.
        RankError: the ranks did not come together.
    """
    patience = timedelta(minutes=minutes)
    if place.world_size == 1:
        yield Consensus()
        return
    if dist.is_initialized():
        gloo = dist.get_backend() == "gloo"
        yield Consensus() if gloo else _beside_nccl(patience)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl":
        for name, value in _NCCL_DEFAULTS.items():
            os.environ.setdefault(name, value)
    wait = (
        f"rank {place.rank} of {place.world_size} ({place.origin}) waits for the other ranks "
        f"(for a single process: {how_to_run_alone()})"
    )
    try:
        with told(wait, after=2.0 if place.rank == 0 else 20.0):
            store = _meeting_point(place, patience)
            store.set_timeout(patience)
            call_the_roll(store, facts_of(place, device, settings or {}), place.world_size)
            with gloo_on_stderr():
                dist.init_process_group(
                    backend,
                    store=PrefixStore("ranks", store),
                    timeout=patience,
                    rank=place.rank,
                    world_size=place.world_size,
                    device_id=device if backend == "nccl" else None,
                )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise _not_together(place, minutes, error) from None
    consensus = _beside_nccl(patience) if backend == "nccl" else Consensus()
    try:
        yield consensus
    except InterruptedRun:
        # All ranks leave here. The barrier is needed because a launcher may end the other ranks as
        # soon as one has left.
        dist.barrier(consensus.group)
        _leave()
        raise
    except RebiasError:
        _leave()
        raise
    # Any other exception is only this rank's. The group is not destroyed then, because that could
    # wait for the other ranks for ever; the launcher ends them.
    dist.barrier(consensus.group)
    _leave()


def _meeting_point(place: Placement, patience: timedelta) -> Store:
    """Return the store in which the ranks meet: torchrun's own, or one that rank 0 opens."""
    if place.address is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store: Store = next(iter(rendezvous("env://", timeout=patience)))[0]
        return store
    return TCPStore(
        place.address or os.environ["MASTER_ADDR"],
        place.port or int(os.environ["MASTER_PORT"]),
        place.world_size,
        is_master=place.rank == 0,
        timeout=patience,
        # The roll call waits instead, because it can name the missing ranks.
        wait_for_workers=False,
        multi_tenant=True,
    )


def _not_together(place: Placement, minutes: float, error: Exception) -> RankError:
    where = f"rank {place.rank}, start"
    address = place.address or os.environ.get("MASTER_ADDR")
    port = place.port or os.environ.get("MASTER_PORT")
    why = reason(error)
    if "NCCL" in why or "CUDA" in why:  # by then the ranks have met
        return RankError(f"{where}: {why}")
    if "EADDRINUSE" in str(error):
        return RankError(f"{where}: MASTER_PORT {port} is in use on this machine; choose another")
    return RankError(
        f"{where}: the {place.world_size} ranks did not come together at {address}:{port} "
        f"within {minutes:g} minutes ({why}); check that the others run and can reach "
        "this address"
    )


def set_time_out(consensus: Consensus, minutes: float) -> None:
    """Set how long the ranks wait for each other from now on, in minutes."""
    if consensus.world_size > 1:
        for group in {dist.group.WORLD, consensus.group, consensus.signs_of_life} - {None}:
            set_timeout(timedelta(minutes=minutes), group)


def _beside_nccl(patience: timedelta) -> Consensus:
    # Consensus exchanges tensors on the CPU; beside NCCL it needs groups of its own.
    with gloo_on_stderr():
        own, signs_of_life = (dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
    assert isinstance(own, dist.ProcessGroup)
    assert isinstance(signs_of_life, dist.ProcessGroup)
    return Consensus(own, signs_of_life)


def _leave() -> None:
    # DDP's reducers are in reference cycles. A reducer that outlives the group is freed when the
    # interpreter ends, together with gloo's threads, which can abort the process.
    gc.collect()
    dist.destroy_process_group()
