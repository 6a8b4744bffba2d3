"""The check before the ranks join: each is there once, with equal software, on its own GPU.

The ranks meet in the store through which the process group is formed afterwards. So a missing
rank, a rank that is there twice or one with other settings is named; the process group itself
would wait for ever. The ranks exchange JSON: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

from rebias_dist.errors import ConfigError, PlacementError
from rebias_dist.ranks.placement import Placement

_PACKAGES = ("torchvision", "numpy", "webdataset", "rebias-dist")
_SHOWN = 3  # at most so many differences of a rank are named
_NAMED = 8  # at most so many missing ranks are named
_FAREWELL = timedelta(seconds=20)  # how long rank 0 stays for the others to read its verdict


def device_name(device: torch.device) -> str:
    """Return the name of a GPU's model, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def facts_of(
    placement: Placement, device: torch.device, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a rank tells rank 0 about itself, as plain JSON data.

    ``same`` holds what must be equal on all ranks; ``gpu`` is the device's UUID.
    """
    # GPUs of two models give other bits for the same sums, so the ranks' weights would drift apart.
    same = {"number of ranks": str(placement.world_size), "device": device_name(device)}
    same |= {"python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            same[package] = metadata.version(package)
    same |= {key: str(value) for key, value in settings.items()}
    gpu = None
    if device.type == "cuda":
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    return {
        "rank": placement.rank,
        "same": same,
        "gpu": gpu,
        "host": platform.node(),
    }


def verdict(ranks: Sequence[Mapping[str, Any]], world_size: int) -> str | None:
    """Return one line on the first problem of the ranks, or None if there is none.

    Args:
        ranks: the facts of the processes that came, ``world_size`` of them.
        world_size: the number of ranks, as rank 0 has it.
    """
    times = Counter(facts["rank"] for facts in ranks)
    twice = sorted(rank for rank, count in times.items() if count > 1)
    if twice:
        missing = sorted(set(range(world_size)) - set(times))
        return (
            f"rank {twice[0]} is there {times[twice[0]]} times"
            + (f" and rank {missing[0]} is missing" if missing else "")
            + "; every process needs a RANK of its own"
        )
    by_rank = {facts["rank"]: facts for facts in ranks}
    if 0 not in by_rank:
        return "rank 0 is missing"
    reference = by_rank[0]
    found = []
    for rank, facts in sorted(by_rank.items()):
        keys = [*reference["same"], *(k for k in facts["same"] if k not in reference["same"])]
        differing = [
            f"{key} {facts['same'].get(key, 'unknown')} instead of "
            f"{reference['same'].get(key, 'unknown')}"
            for key in keys
            if facts["same"].get(key) != reference["same"].get(key)
        ]
        if differing:
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            found.append(f"rank {rank} has {', '.join(differing[:_SHOWN])}{more}")
    if found:
        more = f" (and {len(found) - 1} more ranks differ)" if len(found) > 1 else ""
        return f"{found[0]}{more}; all ranks must have the same as rank 0 on {reference['host']}"
    owners: dict[str, int] = {}
    for rank, facts in sorted(by_rank.items()):
        if facts["gpu"] is not None:
            first = owners.setdefault(facts["gpu"], rank)
            if first != rank:
                return (
                    f"ranks {first} and {rank} share GPU {facts['gpu']} of {facts['host']}; "
                    "start fewer ranks a node, or bind one GPU to each"
                )
    return None


def _missing(came: Sequence[int], world_size: int) -> str:
    absent = sorted(set(range(world_size)) - set(came))
    if not absent:  # the last ones came after the wait was over
        return "the last of them came too late"
    names = ", ".join(map(str, absent[:_NAMED]))
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return f"rank {names} is missing" if len(absent) == 1 else f"ranks {names}{more} are missing"


def call_the_roll(store: Store, facts: Mapping[str, Any], world_size: int) -> None:
    """Wait until all ranks came, and compare them.

    Args:
        store: in which the ranks meet; its time-out is how long to wait.
        facts: of this rank, from :func:`facts_of`.
        world_size: number of ranks.

    Raises:
        ConfigError: the ranks differ; all of them raise it.
        PlacementError: ``world_size`` processes came before this one.
        DistError: not all ranks came; on rank 0 it names the missing ones.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"roll-call/{attempt}", store)
    place = store.add("came", 1)
    if place > world_size:
        raise PlacementError(
            f"rank {facts['rank']} on {facts['host']} is one too many: {world_size} ranks were "
            "there before; every process needs a RANK of its own"
        )
    store.set(f"facts/{place}", json.dumps(facts))
    # There may be two processes with rank 0; the first of them compares the facts.
    speaks = facts["rank"] == 0 and store.add("speakers", 1) == 1
    if speaks:
        keys = [f"facts/{n}" for n in range(1, world_size + 1)]
        try:
            store.wait(keys)
        except DistError:
            came = [json.loads(store.get(key))["rank"] for key in keys if store.check([key])]
            raise DistError(_missing(came, world_size)) from None
        found = verdict([json.loads(store.get(key)) for key in keys], world_size)
        store.set("verdict", json.dumps(found))
    found = json.loads(store.get("verdict"))
    if found is None:
        return
    if store.add("heard", 1) == world_size:
        store.set("all heard", "")
    if speaks:  # the store may be in this process, so it stays until all have the verdict
        with contextlib.suppress(DistError, RuntimeError):
            store.wait(["all heard"], _FAREWELL)
    raise ConfigError(str(found))
