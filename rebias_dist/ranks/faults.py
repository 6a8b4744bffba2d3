"""The message of a rank that fails: which rank, at which step, and why."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rebias_dist.errors import RankError
from rebias_dist.ranks.consensus import Consensus

# Parts of the messages of gloo, NCCL and torch's store when a peer has ended or does not answer.
# Their names are not among them, because messages on all other faults have them too.
_LOST = (
    "Connection closed by peer",
    "Connection closed by remote peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "Connection refused",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Broken pipe",
    "pair closure",
    "Timed out waiting",
    "Connect timeout",
    "Socket Timeout",
    "remote process exited",
    "communicator was aborted",
    "collective operation timeout",
)


def reason(error: Exception) -> str:
    """Return the first line of an error's message, and the cause that NCCL adds in a later line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    first = next(iter(lines), "") or type(error).__name__
    first = first.partition(". This is typically")[0]  # cut off gloo's advice
    if "Last error:" in lines[:-1]:
        first += f" ({lines[lines.index('Last error:') + 1]})"
    return first


@dataclass
class Whereabouts:
    """Where this rank is, for the message of an unexpected error."""

    rank: int
    step: int | None = None
    """Optimizer steps taken; None before the first."""
    log_file: Path | None = None
    peers: list[Any] = field(default_factory=list)
    """Host name and process id of each rank."""

    def meet(self, consensus: Consensus) -> None:
        """Exchange host name and process id with the other ranks; a collective."""
        self.peers = consensus.gather([platform.node(), os.getpid()])

    def fault(self, error: Exception) -> RankError:
        """Return an unexpected exception as this rank's fault, and write its traceback.

        The traceback goes to the log file, and to stderr unless the exception is only the loss of
        another rank.
        """
        where = f"rank {self.rank}, " + ("start" if self.step is None else f"step {self.step}")
        why = reason(error)
        trace = "".join(traceback.format_exception(error))
        if self._is_loss(error):
            text = f"{where}: another rank is lost{self._lost_ranks()}; {why}"
        else:
            sys.stderr.write(trace)
            text = f"{where}: {type(error).__name__}: {why}"
            memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if memory or "out of memory" in why:
                text += "; out of memory: a smaller micro_batch needs less"
        if self.log_file is not None:
            with contextlib.suppress(OSError), self.log_file.open("a", encoding="utf-8") as file:
                file.write(f"{trace}{text}\n")
        return RankError(text)

    @staticmethod
    def _is_loss(error: Exception) -> bool:
        if isinstance(error, (dist.DistStoreError, dist.DistNetworkError)):
            return True
        return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST)

    def _lost_ranks(self) -> str:
        """Return which of the other ranks on this machine have ended or are stopped."""
        found = []
        for rank, (host, process) in enumerate(self.peers):
            if host != platform.node() or rank == self.rank:
                continue
            try:
                stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
                state = stat.rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                state = "X"
            if state in "ZXTt":
                how = "is stopped" if state in "Tt" else "has ended"
                found.append(f"rank {rank} (process {process}) {how}")
        return f": {', '.join(found)}" if found else ""


def origin(of_ranks: list[list[str]]) -> str:
    """Return on which ranks values were not finite before they were summed over the ranks.

    Args:
        of_ranks: for each rank, the names of its values that were not finite.

    Returns:
        The end of an error message; empty if it is no rank, or every one of several.
    """
    ranks = [rank for rank, names in enumerate(of_ranks) if names]
    if not ranks or len(ranks) == len(of_ranks) > 1:
        return ""
    return "".join(f"; from rank {rank} ({', '.join(of_ranks[rank])})" for rank in ranks)
