"""The rows of a global batch, which lie on several ranks: gathered once, used by many terms."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.phases import phase


class _Sentinel(enum.Enum):
    LOCAL = "LOCAL"


LOCAL: Final = _Sentinel.LOCAL
"""As ``group``: this process has all rows of the batch, and nothing is communicated."""

Group: TypeAlias = dist.ProcessGroup | Literal[_Sentinel.LOCAL] | None
"""``None``: the default process group, or this process alone if none is initialised."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def rank_and_world(group: Group) -> tuple[int, int]:
    """Return this process's rank in ``group`` and the number of its ranks."""
    if group is LOCAL or not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def all_gather(tensor: Tensor, group: Group) -> Tensor:
    """Stack the ranks' tensors, ``(W, *shape)``; all must have the same shape and dtype.

    A collective.
    """
    stacked, work = _start_all_gather(tensor, group, async_op=False)
    assert work is None
    return stacked


def _start_all_gather(
    tensor: Tensor, group: Group, *, async_op: bool
) -> tuple[Tensor, dist.Work | None]:
    _, world = rank_and_world(group)
    if group is LOCAL or world == 1:
        return tensor.unsqueeze(0), None
    stacked = tensor.new_empty((world, *tensor.shape))
    with phase("communication"):
        if tensor.is_cuda:  # NCCL would copy from a list; gloo takes nothing else asynchronously
            work = dist.all_gather_into_tensor(stacked, tensor, group=group, async_op=async_op)
        else:
            work = dist.all_gather(list(stacked.unbind()), tensor, group=group, async_op=async_op)
    return stacked, work


class _Gathered:
    """All rows of a global batch, without autograd; derived values are computed on first use."""

    def __init__(
        self, stacked: Tensor, sent: Tensor, counts: Sequence[int], work: dist.Work | None
    ) -> None:
        self._stacked: Tensor | None = stacked  # (W, max(counts), d), padded
        self._sent: Tensor | None = sent  # kept alive until the gather is over
        self._work = work
        self._counts = counts

    @cached_property
    def rows(self) -> Tensor:
        """All rows in rank order, ``(N, d)``, in the dtype they were passed in."""
        if self._work is not None:
            with phase("communication"):
                self._work.wait()
        assert self._stacked is not None
        stacked, self._stacked, self._sent, self._work = self._stacked, None, None, None
        if all(count == stacked.shape[1] for count in self._counts):
            return stacked.flatten(0, 1)
        return torch.cat([part[:n] for part, n in zip(stacked, self._counts, strict=True)])

    @cached_property
    def centred(self) -> Tensor:
        """Rows minus their mean, ``(N, d)``, float32 or float64.

        Centring does not change distances, but makes ``|a|² + |b|² - 2ab`` more accurate: it
        loses the more digits the farther the rows are from the origin.
        """
        rows = self._wide_rows()
        return rows - rows.mean(0)

    @cached_property
    def square_norms(self) -> Tensor:
        """``|x|²`` of the centred rows, ``(N,)``, in their dtype; infinite where it overflows."""
        norms: Tensor = torch.linalg.vector_norm(self.centred, dim=1, dtype=torch.float64)
        return norms.square_().to(self.centred.dtype)

    @cached_property
    def poison(self) -> Tensor:
        """0, or NaN if any row is not finite or its squared norm overflows; 0-d float64.

        All ranks hold all rows, so all of them agree. Without it, the row would vanish from a
        rank's kernels as ``exp(-inf) = 0``.
        """
        return self.square_norms.sum(dtype=torch.float64) * 0

    @cached_property
    def largest_difference(self) -> Tensor:
        """Upper bound of the difference of two rows in any coordinate, 0-d, the rows' dtype.

        It is the difference of the largest and the smallest entry. These have the same bits in
        any order of evaluation and on any hardware, so ranks may decide by it.
        """
        if self.rows.numel() == 0:
            return self.rows.new_zeros(())
        smallest, largest = torch.aminmax(self.rows)
        return largest - smallest

    def _wide_rows(self) -> Tensor:
        return self.rows.to(torch.promote_types(self.rows.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Features:
    """This rank's rows of one network's features, and the gathered rows of all ranks.

    Made by :func:`gather_features`. ``local`` is ``(n, d)`` as passed, with its autograd graph.
    ``counts`` has the number of rows of each rank, ``offset`` the index of this rank's first row
    in the global batch. ``rows`` waits for an asynchronous gather.
    """

    local: Tensor
    counts: tuple[int, ...]
    offset: int
    group: Group
    gathered: _Gathered

    @property
    def rows(self) -> Tensor:
        """All rows in rank order, ``(N, d)``, detached, in the dtype of ``local``."""
        return self.gathered.rows

    @property
    def total(self) -> int:
        """Number of rows of the global batch, N."""
        return sum(self.counts)

    def detach(self) -> Features:
        """Return the same features without autograd; the gathered rows are shared."""
        return replace(self, local=self.local.detach())


def _shape_problem(x: Tensor) -> str | None:
    if x.ndim != 2:
        return f"features must be rows (n, d), got shape {tuple(x.shape)}"
    if x.shape[1] == 0:
        return f"features must have at least one column, got shape {tuple(x.shape)}"
    if x.dtype not in _DTYPES:
        return f"features must be floating point, got {x.dtype}; cast them first"
    return None


def exchange_counts(tensors: Sequence[Tensor], group: Group) -> list[tuple[int, ...]]:
    """Return, for each tensor, how many rows each rank holds; checks the shapes of all ranks.

    This is one small all-gather. Each tensor must be ``(n, d)`` with the same d and dtype on all
    ranks; n may differ.

    Raises:
        ValueError: on all ranks, if a tensor of any rank has another shape or dtype.
    """
    problems = [_shape_problem(x) for x in tensors]
    if rank_and_world(group)[1] == 1 and not any(problems):
        return [(x.shape[0],) for x in tensors]
    described = [
        [-1, 0, 0] if problem else [x.shape[0], x.shape[1], _DTYPES.index(x.dtype)]
        for x, problem in zip(tensors, problems, strict=True)
    ]
    table = all_gather(torch.tensor(described, device=tensors[0].device), group)
    per_tensor: list[list[list[int]]] = table.transpose(0, 1).tolist()
    for described_by, problem in zip(per_tensor, problems, strict=True):
        if problem:  # this rank names the cause; the others name this rank
            raise ValueError(problem)
        _, d0, dtype0 = described_by[0]
        for rank, (n, d, dtype) in enumerate(described_by):
            if n < 0:
                raise ValueError(f"features of rank {rank} are not floating-point rows (n, d)")
            if (d, dtype) != (d0, dtype0):
                raise ValueError(
                    f"features must have the same width and dtype on all ranks: rank {rank} has "
                    f"{d} × {_DTYPES[dtype]}, rank 0 has {d0} × {_DTYPES[dtype0]}"
                )
    return [tuple(n for n, _, _ in described_by) for described_by in per_tensor]


def gather_features(
    x: Tensor,
    *,
    counts: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Features:
    """Gather the rows of all ranks once; the result serves any number of HSIC terms.

    Args:
        x: this rank's rows, ``(n, d)``, float16, bfloat16, float32 or float64, with the same d
            and dtype on every rank; n may differ and may be 0. Rows are sent in their dtype.
        counts: number of rows of every rank, if the caller knows them. Without them the ranks
            exchange them first: one more collective and a host synchronisation.
        group: process group; ``None`` is the default one (or this process alone, if none is
            initialised), ``LOCAL`` never communicates.
        async_op: return at once; the first use of the gathered rows waits for the gather.

    Returns:
        The features. ``local`` is ``x`` itself, which must not be changed in place while they are
        in use; the gathered rows have no autograd graph.

    Raises:
        ValueError: ``x`` has a wrong shape or dtype; without ``counts`` all ranks raise it. It is
            also raised if ``counts`` contradict ``x``; this rank still takes part in the gather,
            with NaN, so that no other rank waits for it for ever.
    """
    rank, world = rank_and_world(group)
    if counts is None:
        [counts] = exchange_counts([x], group)
    elif problem := _shape_problem(x):
        raise ValueError(problem)
    counts = tuple(counts)
    if len(counts) != world:
        raise ValueError(f"counts must list the rows of {world} ranks, got {len(counts)} numbers")

    contradicted = counts[rank] != x.shape[0]
    rows = x.detach()
    if contradicted:
        sent = rows.new_full((max(counts), x.shape[1]), torch.nan)
    else:
        sent = _padded(rows, max(counts))
    stacked, work = _start_all_gather(sent, group, async_op=async_op)
    if contradicted:
        raise ValueError(
            f"counts say that rank {rank} has {counts[rank]} rows, but its tensor has {x.shape[0]}"
        )
    gathered = _Gathered(stacked, sent, counts, work)
    return Features(x, counts, sum(counts[:rank]), group, gathered)


def gather_rows(x: Tensor, counts: Sequence[int], group: Group = None) -> Tensor:
    """Return the rows of all ranks, ``(N, …)`` of any dtype, without autograd; a collective.

    Args:
        x: this rank's rows, ``(n, …)``; alike in shape and dtype on all ranks, but for n.
        counts: number of rows of every rank.
        group: as in :func:`gather_features`.
    """
    if len(counts) == 1:
        return x.detach()
    stacked = all_gather(_padded(x.detach(), max(counts)), group)
    return torch.cat([part[:n] for part, n in zip(stacked, counts, strict=True)])


def _padded(rows: Tensor, n: int) -> Tensor:
    """Return ``rows`` with zeros up to n rows: gloo gathers only equal sizes."""
    if len(rows) == n:
        return rows.contiguous()
    sent = rows.new_zeros((n, *rows.shape[1:]))
    sent[: len(rows)] = rows
    return sent
