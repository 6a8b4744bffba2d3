"""A rank's connection to the others, from the start of a run to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rebias_dist.errors import RebiasError
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.device_wait import attentive
from rebias_dist.ranks.faults import Whereabouts
from rebias_dist.ranks.placement import Placement
from rebias_dist.ranks.process_group import choose_device, process_group
from rebias_dist.ranks.signals import StopRequest, stop_requests


@dataclass(frozen=True)
class Session:
    """This rank and its connection to the others."""

    consensus: Consensus
    device: torch.device
    stop: StopRequest
    """True once a signal has asked this rank to stop."""
    where: Whereabouts
    """Where this rank is, for the message of a fault."""
    started_by: str
    """What started the ranks, for the log."""


@contextmanager
def session(
    placement: Placement, device: str, start_minutes: float, settings: Mapping[str, Any]
) -> Iterator[Session]:
    """Join the other ranks; leave the process group at the end of the block.

    Args:
        placement: of this process.
        device: ``auto``, ``cpu`` or ``cuda``.
        start_minutes: how long the ranks wait for each other at the start.
        settings: by name; they must be the same on all ranks.

    Raises:
        RebiasError: an expected error, the same on all ranks. Any other exception becomes a
            RankError of this rank alone.
    """
    chosen = choose_device(device, placement.local_rank)
    where = Whereabouts(placement.rank)
    try:
        with (
            process_group(placement, chosen, start_minutes, settings) as consensus,
            stop_requests() as stop,
            attentive(consensus, lambda: bool(stop)),
        ):
            where.meet(consensus)
            yield Session(consensus, chosen, stop, where, placement.origin)
    except RebiasError:
        raise
    except Exception as error:
        raise where.fault(error) from None
