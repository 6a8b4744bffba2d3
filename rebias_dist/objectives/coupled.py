"""Any objective of the whole batch, exact on any layout of ranks.

Contrastive and kernel losses couple the samples of a batch: computed on each rank's rows alone,
they are other objectives. Here a function sees the rows of all ranks:

* :func:`coupled` evaluates a function of the whole batch on every rank. Each rank does all of the
  work, O(N²·d) for a loss over pairs.
* :func:`coupled_by_rows` evaluates a function whose value is a sum over rows. Each rank does the
  work of its own rows, O(N²·d/W), and one all-reduce adds the gradients up.

Every rank gets the value of the whole batch, and in the backward pass the true partial derivatives
of that value by its own rows, without communication: they are computed in the forward pass. (DDP
averages parameter gradients, so a trainer multiplies its loss by the number of ranks.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.errors import NonFiniteError
from rebias_dist.objectives.features import (
    Features,
    Group,
    all_gather,
    gather_rows,
    rank_and_world,
)
from rebias_dist.objectives.first_derivatives import first_derivatives
from rebias_dist.objectives.full_precision import full_precision
from rebias_dist.phases import phase

_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


class ElsewhereError(ValueError):
    """The function failed on another rank, which raises the reason."""


@dataclass(frozen=True)
class Rows:
    """Some rows of the global batch, for :func:`coupled_by_rows`."""

    features: tuple[Tensor, ...]
    """``(n, d)`` each, float32 or float64."""
    samples: Mapping[str, Tensor]
    """The named per-sample tensors, ``(n, …)`` each."""
    index: Tensor
    """``(n,)`` int64: the places of the rows in the global batch."""


def coupled(
    function: Callable[..., Tensor],
    *features: Tensor | Features,
    group: Group = None,
    check: bool = True,
    **samples: Tensor | None,
) -> Tensor:
    """Return the value of a function of all rows of the global batch, exact on any layout.

    Args:
        function: called as ``function(*features, **samples)`` with all rows, ``(N, d)`` each, in
            rank order; it returns a scalar. It must be deterministic: all ranks call it with the
            same rows. It runs in float32 (float64 for float64 rows), whatever the autocast and
            TF32 settings.
        features: this rank's rows, ``(n, d)``, or :class:`Features`. Ranks may hold different
            numbers of rows, or none. :class:`Features` have an autograd graph on all ranks or on
            none.
        group: process group; see :func:`~rebias_dist.objectives.gather_features`.
        check: raise on a value that is not finite; this waits for the device. Without it, such a
            value and its gradients reach every rank.
        samples: named tensors with one entry for each row, such as ``labels`` and ``bias``. They
            travel with the features, in one collective. None is handed on as None.

    Returns:
        0-d float64 tensor, with the same bits on every rank.

    Raises:
        NonFiniteError: with ``check``, on all ranks alike.
        ValueError: shapes, dtypes or counts that do not fit, or no scalar from the function.
    """
    batch = _gather(features, samples, group)

    def evaluate(leaves: tuple[Tensor, ...]) -> Tensor:
        return function(*leaves, **batch.samples)

    value, gradients = _differentiate(evaluate, batch.rows, batch.needed)
    gradients = [None if g is None else g[batch.own] for g in gradients]
    return _finish(value, gradients, batch, check)


def coupled_by_rows(
    function: Callable[[Rows, Rows], Tensor],
    *features: Tensor | Features,
    group: Group = None,
    check: bool = True,
    **samples: Tensor | None,
) -> Tensor:
    """Return the value of a function that is a sum over rows, exact on any layout.

    Each rank computes the terms of its own rows. The gradients by all rows are added up over the
    ranks in the forward pass, by one all-reduce of ``(N, d)`` for each set of features.

    Args:
        function: called as ``function(own, all)``; it returns the scalar sum of the terms of the
            rows in ``own``, as far as the global batch ``all`` decides them. A mean over the
            batch is a sum of terms divided by ``len(all.index)``.
        features: as in :func:`coupled`.
        group: as in :func:`coupled`.
        check: as in :func:`coupled`.
        samples: as in :func:`coupled`, without None.

    Returns:
        0-d float64 tensor, with the same bits on every rank.

    Raises:
        NonFiniteError: with ``check``, on all ranks alike.
        ValueError: shapes, dtypes or counts that do not fit, or no scalar from the function. If
            the function raises on one rank, the others raise too with ``check``; without it
            their value is NaN.
    """
    batch = _gather(features, samples, group)
    given = {name: values for name, values in batch.samples.items() if values is not None}
    index = torch.arange(sum(batch.counts), device=batch.rows[0].device)
    mine = {name: values[batch.own] for name, values in given.items()}

    def evaluate(leaves: tuple[Tensor, ...]) -> Tensor:
        own = Rows(tuple(leaf[batch.own] for leaf in leaves), mine, index[batch.own])
        return function(own, Rows(leaves, given, index))

    value, failure = batch.rows[0].new_zeros((), dtype=torch.float64), None
    gradients: list[Tensor | None] = [
        torch.zeros_like(rows) if needed else None
        for rows, needed in zip(batch.rows, batch.needed, strict=True)
    ]
    if batch.counts[batch.rank]:
        try:
            value, gradients = _differentiate(evaluate, batch.rows, batch.needed)
        except Exception as error:
            # Raised below: the other ranks would wait in their all-reduce for ever.
            failure = error
    if len(batch.counts) > 1:
        failed = torch.full_like(value, failure is not None)  # no copy to the device
        both = torch.stack([value, failed])
        with phase("communication"):
            dist.all_reduce(both, group=batch.group)
            for gradient in gradients:
                if gradient is not None:
                    dist.all_reduce(gradient, group=batch.group)
        value = torch.where(both[1] > 0, torch.nan, both[0])
        if check and failure is None and both[1] > 0:
            raise ElsewhereError("the coupled function failed on another rank, which says why")
    if failure is not None:
        raise failure
    gradients = [None if g is None else g[batch.own] for g in gradients]
    return _finish(value, gradients, batch, check)


@dataclass(frozen=True)
class _Batch:
    """The global batch on this rank."""

    local: tuple[Tensor, ...]
    """This rank's rows as passed, with their autograd graph."""
    rows: tuple[Tensor, ...]
    """All rows, detached, float32 or float64."""
    samples: dict[str, Tensor | None]
    """The per-sample tensors of all rows."""
    needed: tuple[bool, ...]
    """Which features need a gradient; alike on all ranks."""
    counts: tuple[int, ...]
    rank: int
    group: Any

    @property
    def own(self) -> slice:
        """Return the place of this rank's rows."""
        begin = sum(self.counts[: self.rank])
        return slice(begin, begin + self.counts[self.rank])


def _gather(
    features: Sequence[Tensor | Features], samples: Mapping[str, Tensor | None], group: Group
) -> _Batch:
    """Gather in one collective what is not gathered yet."""
    if not features:
        raise ValueError("coupled needs at least one set of features")
    ready = [x for x in features if isinstance(x, Features)]
    if ready:
        group = ready[0].group
    if any(x.counts != ready[0].counts or x.group is not group for x in ready):
        raise ValueError("all features must have the same group, and the same rows on each rank")
    sets = {f"features {i}": x for i, x in enumerate(features) if isinstance(x, Tensor)}
    travelling = {**sets, **{name: v for name, v in samples.items() if v is not None}}
    local = tuple(x.local if isinstance(x, Features) else x for x in features)
    known = ready[0].counts if ready else None
    counts, graphs = _agree(travelling, len(sets), known, local[0].device, group)
    found = dict(
        zip(travelling, _gather_packed(list(travelling.values()), counts, group), strict=True)
    )
    rows = [
        x.rows if isinstance(x, Features) else found[f"features {i}"]
        for i, x in enumerate(features)
    ]
    return _Batch(
        local,
        tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in rows),
        {name: None if values is None else found[name] for name, values in samples.items()},
        tuple(
            x.local.requires_grad if isinstance(x, Features) else graphs[f"features {i}"]
            for i, x in enumerate(features)
        ),
        counts,
        rank_and_world(group)[0],
        group,
    )


def _agree(
    tensors: Mapping[str, Tensor],
    sets: int,
    counts: tuple[int, ...] | None,
    device: torch.device,
    group: Group,
) -> tuple[tuple[int, ...], dict[str, bool]]:
    """Return the rows of each rank, and which tensors need a gradient on any rank.

    The first ``sets`` tensors are features. ``counts`` are the rows, where they are known.

    Raises:
        ValueError: alike on all ranks.
    """
    described = []
    for place, x in enumerate(tensors.values()):
        fits = x.ndim > 0 and x.dtype in _DTYPES
        if place < sets:
            fits = x.ndim == 2 and x.is_floating_point() and x.shape[1] > 0
        width = math.prod(x.shape[1:])
        described.append(
            [len(x), width, _DTYPES.index(x.dtype), x.requires_grad] if fits else [-1, 0, 0, 0]
        )
    graphs: dict[str, bool] = {}
    if described:
        table: list[Any] = all_gather(torch.tensor(described, device=device), group).tolist()
    for place, name in enumerate(tensors):
        of_ranks = [of_rank[place] for of_rank in table]
        rows = tuple(n for n, *_ in of_ranks)
        graphs[name] = any(graph for *_, graph in of_ranks)
        if min(rows) < 0:
            kind = "floating-point rows (n, d)" if place < sets else "numbers, one for each row"
            raise ValueError(f"{name} must be {kind}, on every rank")
        counts = rows if counts is None else counts
        if rows != counts:
            raise ValueError(f"{name} must have {counts} rows on the ranks, as others have: {rows}")
        if len({(width, dtype) for _, width, dtype, _ in of_ranks}) > 1:
            raise ValueError(f"{name} must have one width and dtype on all ranks")
    assert counts is not None
    return counts, graphs


def _gather_packed(
    tensors: Sequence[Tensor], counts: tuple[int, ...], group: Group
) -> list[Tensor]:
    """Return tensors with the rows of all ranks: their bytes travel side by side."""
    tensors = [x.detach() for x in tensors]
    if not tensors or len(counts) == 1:
        return tensors
    n = len(tensors[0])
    parts = [x.reshape(n, math.prod(x.shape[1:])).contiguous().view(torch.uint8) for x in tensors]
    widths = [part.shape[1] for part in parts]
    together = gather_rows(torch.cat(parts, dim=1), counts, group)
    return [
        part.clone(memory_format=torch.contiguous_format).view(x.dtype).reshape(-1, *x.shape[1:])
        for x, part in zip(tensors, torch.split(together, widths, dim=1), strict=True)
    ]


def _differentiate(
    evaluate: Callable[[tuple[Tensor, ...]], Tensor],
    rows: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the value of a function of ``rows`` and its gradients by those that need one."""
    leaves = tuple(x.detach().requires_grad_(n) for x, n in zip(rows, needed, strict=True))
    with torch.enable_grad(), full_precision(rows[0].device):
        value = evaluate(leaves)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the coupled function must return a scalar tensor, got {found}")
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        # A constant, such as the value without any positive pair, has no graph.
        by_leaf: Iterator[Tensor | None]
        if wanted and value.requires_grad:
            by_leaf = iter(torch.autograd.grad(value, wanted, allow_unused=True))
        else:
            by_leaf = iter([None for _ in wanted])
    gradients: list[Tensor | None] = []
    for leaf in leaves:
        gradient = next(by_leaf) if leaf.requires_grad else None
        if leaf.requires_grad and gradient is None:
            gradient = torch.zeros_like(leaf)
        gradients.append(gradient)
    return value.detach().double(), gradients


def _finish(
    value: Tensor, gradients: Sequence[Tensor | None], batch: _Batch, check: bool
) -> Tensor:
    if check and not value.isfinite():
        bad = sum(int((~rows.isfinite()).any(1).sum()) for rows in batch.rows)
        reason = f"{bad} rows are not finite" if bad else "all rows are finite"
        raise NonFiniteError(
            f"the coupled objective is {float(value)}: {reason}; look at the learning rate, the "
            "precision, and anchors without positives"
        )
    return cast(Tensor, _Coupled.apply(value, len(batch.local), *gradients, *batch.local))


class _Coupled(torch.autograd.Function):
    """A value whose gradients by this rank's rows are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sets: int, *tensors: Tensor | None) -> Tensor:
        ctx.sets = sets
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (upstream,) = output_gradients
        gradients, local = ctx.saved_tensors[: ctx.sets], ctx.saved_tensors[ctx.sets :]
        found = [
            None if g is None else (g * upstream.to(g.dtype)).to(x.dtype)
            for g, x in zip(gradients, local, strict=True)
        ]
        found = first_derivatives(found, (*local, upstream))
        return (None, None, *(None for _ in gradients), *found)
