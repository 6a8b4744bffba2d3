"""Decisions that all ranks take together: to stop, to fail, or what rank 0 read or decided.

A rank that raises or stops alone leaves the others waiting in their next collective. So every such
decision goes through here: the ranks exchange what they found, and all return or raise the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from rebias_dist.errors import (
    ConfigError,
    CrashLoopError,
    DataError,
    InterruptedRun,
    NonFiniteError,
    RebiasError,
    UnequalWeightsError,
)
from rebias_dist.phases import phase

_BY_NAME = {
    error.__name__: error
    for error in (
        RebiasError,
        ConfigError,
        CrashLoopError,
        DataError,
        NonFiniteError,
        UnequalWeightsError,
        InterruptedRun,
    )
}


class Consensus:
    """Lets the ranks of a run decide together; with a single process nothing is communicated.

    Every method is a collective.

    Args:
        group: a gloo group of all ranks, or None for the default group (which must be gloo).
        signs_of_life: a further gloo group of all ranks, for ``device_wait``; None: the ranks wait
            for no GPU.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        signs_of_life: dist.ProcessGroup | None = None,
    ) -> None:
        self.group = group
        self.signs_of_life = signs_of_life
        together = dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's ``value`` (plain JSON data) on every rank."""
        return self._exchange(value, only_zero=True)[0]

    def copy_from_zero(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors on the CPU, the same ones on every rank, with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                values = tensor.contiguous()
                # As bytes: gloo knows no int16, for example.
                dist.broadcast(values.reshape(-1).view(torch.uint8), 0, group=self.group)
                tensor.copy_(values)

    def gather(self, value: Any) -> list[Any]:
        """Return the ranks' values (plain JSON data), in rank order, on every rank."""
        return self._exchange(value, only_zero=False)

    def _exchange(self, value: Any, only_zero: bool) -> list[Any]:
        # JSON, because torch's object collectives unpickle what they receive.
        text = json.dumps(value).encode()
        if self.world_size == 1:
            return [json.loads(text)]
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(text) if self.rank == 0 or not only_zero else 0
        dist.all_reduce(lengths, group=self.group)
        sizes: list[int] = lengths.tolist()
        # Each rank fills its own slice of the buffer, so the sum puts them side by side.
        buffer = torch.zeros(sum(sizes), dtype=torch.uint8)
        start = sum(sizes[: self.rank])
        if sizes[self.rank]:
            buffer[start : start + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        dist.all_reduce(buffer, group=self.group)
        joined, texts = bytes(buffer.numpy()), []
        for size in sizes:
            texts.append(joined[:size])
            joined = joined[size:]
        return [json.loads(text) if text else None for text in texts]

    def agree(self, fault: RebiasError | None = None, wish: int = 0) -> int:
        """Return the greatest of the ranks' wishes; if any has a fault, raise it on all ranks."""
        if self.world_size == 1:
            if fault is not None:
                raise fault
            return wish
        flags = torch.tensor([fault is not None, wish], dtype=torch.int32)
        with phase("communication"):
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        if flags[0]:
            self._raise_together(fault)
        return int(flags[1])

    def _raise_together(self, fault: RebiasError | None) -> None:
        # The nearest class that all ranks know is sent by name, because it decides the exit code.
        mine = None
        if fault is not None:
            known = next(cls for cls in type(fault).__mro__ if cls.__name__ in _BY_NAME)
            mine = [known.__name__, str(fault)]
        found = [(rank, said) for rank, said in enumerate(self.gather(mine)) if said]
        rank, (kind, text) = found[0]
        # A fault that all ranks have is not attributed to one of them.
        where = "" if len(found) == self.world_size else f"rank {rank}: "
        raise _BY_NAME[kind](where + text)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on every rank; if it raises a RebiasError on any, raise it on all.

        An OSError, such as that of a full disk, becomes a RebiasError.
        """
        fault: RebiasError | None = None
        try:
            yield
        except RebiasError as error:
            fault = error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fault = RebiasError(f"{where}{error.strerror or error}")
        self.agree(fault)

    @contextmanager
    def on_rank_zero(self) -> Iterator[bool]:
        """Run a block in which only rank 0 acts; yield whether this is rank 0; fail together."""
        with self.together():
            yield self.rank == 0
