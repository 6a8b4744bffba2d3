"""HSIC of RBF kernels over a global batch whose rows lie on several ranks.

With ``k(a, b) = exp(-|a-b|² / (2σ²))``, kernel matrices K (of x) and L (of y), row sums k and
ℓ, both estimators have the form

    H = norm · [ Σᵢⱼ Kᵢⱼ Lᵢⱼ + total · (Σk)(Σℓ) − 2 · row · Σᵢ kᵢ ℓᵢ ]

* unbiased (HSIC₁; Song et al., JMLR 13, 2012, equation 5), K and L with zeroed diagonals:
  norm = 1/(N(N−3)), row = 1/(N−2), total = 1/((N−1)(N−2)); it may be negative;
* biased (HSIC_b = trace(KHLH)/N²; Gretton et al., ALT 2005, with 1/N² for (N−1)⁻²), K and L
  with their diagonals: norm = total = 1/N², row = 1/N.

Neither estimator changes when a constant is added to all the entries of a kernel that it uses. So
wide kernels, whose entries are near 1, are held as K − 1 (``expm1``), which keeps the digits that
``exp`` would round away. Narrow kernels are held as K.

With ``U(L)ᵢⱼ = Lᵢⱼ − row·(ℓᵢ+ℓⱼ) + total·Σℓ`` and ``M = U(L)∘K`` off the diagonal,

    ∂H/∂xᵢ = −(2·norm/σ²) · Σⱼ Mᵢⱼ (xᵢ − xⱼ) = −(2·norm/σ²) · [(M1)ᵢ xᵢ − (M X)ᵢ],

and the same with the roles swapped for y. Here the factor K must be the kernel itself, not K − 1.

Each rank holds all rows of X and Y and computes the tiles of its own rows. Then one all-gather
shares the row sums. After it every rank has the exact value and all that the gradient of its rows
needs, so the backward pass communicates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.errors import ArgumentError, NonFiniteError
from rebias_dist.objectives.features import (
    Features,
    Group,
    all_gather,
    exchange_counts,
    gather_features,
)
from rebias_dist.objectives.first_derivatives import first_derivatives
from rebias_dist.objectives.full_precision import full_precision
from rebias_dist.objectives.tiles import Block, Estimator, Plan, Side, add_sums, coefficients

# Side of a tile. On a CPU tiles stay in the cache; on a GPU each costs a launch of every operation,
# and this one takes up to 1 GB with everything that is computed from it.
_TILE, _TILE_OF_GPU = 1024, 5500
_SMALLEST_BATCH = {"unbiased": 4, "biased": 1}


def _share(sums: Tensor, product: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the row sums ``(2, N)`` of all ranks' ``(2, n)``, and the sum of their ``product``.

    Every rank adds the same numbers in the same order, so all get the same bits.
    """
    if len(plan.counts) == 1:
        return sums, product
    longest = max(plan.counts)
    packed = sums.new_zeros(2 * longest + 1)
    packed[:-1].view(2, longest)[:, : sums.shape[1]] = sums
    packed[-1] = product
    stacked = all_gather(packed, plan.group)
    shared = stacked[:, :-1].reshape(-1, 2, longest)
    parts = [part[:, :n] for part, n in zip(shared, plan.counts, strict=True)]
    return torch.cat(parts, dim=1), stacked[:, -1].sum()


def _forward_pass(
    x: Side, y: Side, poison: Tensor, plan: Plan, *, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return the value, the sums and, if ``keep`` and in one block, K and L.

    The sums are those of the rows, ``(2, N)``, and of the kernels, ``(2,)``.
    """
    buffers = [plan.workspace(x.rows), plan.workspace(y.rows)]

    def tiles_of(block: Block) -> list[Tensor]:
        return [
            side.tile(block, plan.estimator, buffer)
            for side, buffer in zip((x, y), buffers, strict=True)
        ]

    kernels: tuple[Tensor, ...] = ()
    if plan.one_block:  # in few operations
        [block] = plan.blocks()
        kernels = tuple(tiles_of(block))
        wide = x.rows.new_empty((2, *block.shape), dtype=torch.float64)
        torch.stack(kernels, out=wide)
        sums, product = wide.sum(2), torch.dot(*wide.flatten(1))
    else:
        sums = x.rows.new_zeros((2, plan.hi - plan.lo), dtype=torch.float64)
        product = sums.new_zeros(())
        strips = plan.strips(sums)
        for block in plan.blocks():
            add_sums(tiles_of(block), sums.unbind(), block, plan.lo, strips, product)
    sums, product = _share(sums, product, plan)
    c = coefficients(plan.estimator, plan.total)
    totals = sums.sum(1)
    value = product + c.total * totals[0] * totals[1] - 2 * c.row * torch.dot(*sums)
    return torch.add(poison, value, alpha=c.norm), (sums, totals), kernels if keep else ()


def _backward_pass(
    sides: Sequence[Side],
    needed: Sequence[bool],
    sums: Tensor,
    totals: Tensor,
    kernels: Sequence[Tensor],
    upstream: Tensor,
    poison: Tensor,
    plan: Plan,
) -> list[Tensor | None]:
    """Return ∂H/∂x and ∂H/∂y of this rank's rows times ``upstream``; None where not ``needed``.

    Each has the dtype of its side's rows.
    """
    lo, hi = plan.lo, plan.hi
    c = coefficients(plan.estimator, plan.total)
    weight_sums = list(sums.new_zeros((2, hi - lo)).unbind())  # M1
    # M X; not needed with one block, where each operation counts because the batch is small.
    weighted: list[Tensor | None] = [
        side.rows.new_zeros((hi - lo, side.rows.shape[1]))
        if wanted and not plan.one_block
        else None
        for side, wanted in zip(sides, needed, strict=True)
    ]
    dtype = torch.promote_types(sides[0].rows.dtype, sides[1].rows.dtype)
    column_terms = c.row * sums
    row_terms = (column_terms - c.total * totals[:, None]).to(dtype)
    column_terms = column_terms.to(dtype)
    buffers = [] if kernels else [plan.workspace(side.rows) for side in sides]
    spare = plan.workspace(row_terms)
    strips = plan.strips(sums)
    for block in plan.blocks():
        i, j = slice(block.i0, block.i1), slice(block.j0, block.j1)
        own_i, own_j = slice(i.start - lo, i.stop - lo), slice(j.start - lo, j.stop - lo)
        tiles = kernels or [
            side.tile(block, plan.estimator, buffer)
            for side, buffer in zip(sides, buffers, strict=True)
        ]
        for this, side in enumerate(sides):
            if not needed[this]:
                continue
            other = 1 - this
            M = spare[: math.prod(block.shape)].view(block.shape)
            torch.sub(tiles[other], row_terms[other, i, None], out=M)
            M.sub_(column_terms[other, j])
            side.times_kernel(M, tiles[this])
            block.diagonal(M).zero_()
            out = weighted[this]
            if out is None:
                weight_sums[this] = M.sum(1, dtype=torch.float64)
                weighted[this] = M.to(side.rows.dtype) @ side.rows
                continue
            add_sums([M], [weight_sums[this]], block, lo, strips)
            M = M.to(side.rows.dtype)
            out[own_i].addmm_(M, side.rows[j])
            if block.mirrored:
                out[own_j].addmm_(M.mT, side.rows[i])
    gradients: list[Tensor | None] = []
    for side, out, total in zip(sides, weighted, weight_sums, strict=True):
        if out is not None:
            # mul_ and sub_, not a fused operation: equal rows then cancel exactly.
            out = side.rows[lo:hi].mul(total[:, None].to(out.dtype)).sub_(out)
            out.mul_(torch.add(poison, upstream, alpha=-2 * c.norm / side.sigma**2))
        gradients.append(out)
    return gradients


class _HSIC(torch.autograd.Function):
    """Value on all ranks; gradient of the rows that this rank passed."""

    @staticmethod
    def forward(
        ctx: Any, x_local: Tensor, y_local: Tensor, x: Side, y: Side, poison: Tensor, plan: Plan
    ) -> Tensor:
        needed = any(ctx.needs_input_grad[:2])
        value, sums, kernels = _forward_pass(x, y, poison, plan, keep=needed)
        if needed:
            data = (x.rows, x.square_norms, x.shift, y.rows, y.square_norms, y.shift)
            ctx.save_for_backward(x_local, y_local, poison, *sums, *data, *kernels)
            ctx.plan, ctx.sigmas = plan, (x.sigma, y.sigma)
        return value

    @staticmethod
    def backward(ctx: Any, *output_gradients: Tensor) -> Any:
        (upstream,) = output_gradients
        x_local, y_local, poison, sums, totals, *data = ctx.saved_tensors
        sides = [
            Side(data[at], data[at + 1], sigma, data[at + 2])
            for at, sigma in zip((0, 3), ctx.sigmas, strict=True)
        ]
        with torch.no_grad(), full_precision(upstream.device):
            needed = ctx.needs_input_grad[:2]
            found = _backward_pass(
                sides, needed, sums, totals, data[6:], upstream, poison, ctx.plan
            )
            gradients = [
                None if g is None else g.to(local.dtype)
                for g, local in zip(found, (x_local, y_local), strict=True)
            ]
        gradients = first_derivatives(gradients, (x_local, y_local, upstream))
        return *gradients, None, None, None, None


def _as_features(
    x: Tensor | Features, y: Tensor | Features, group: Group
) -> tuple[Features, Features]:
    for name, given in (("x", x), ("y", y)):
        if group is not None and isinstance(given, Features):
            # None stands for the default group.
            own = dist.group.WORLD if given.group is None else given.group
            if group is not own:
                raise ValueError(
                    f"{name} was gathered in another group than group={group}; omit group"
                )
    if isinstance(x, Features) and isinstance(y, Features):
        if x.group is not y.group:
            raise ValueError("x and y were gathered in different groups; gather both in one")
        _refuse_different(x.counts, y.counts)
        return x, y
    if isinstance(x, Features):
        assert isinstance(y, Tensor)
        return x, gather_features(y, counts=x.counts, group=x.group)
    if isinstance(y, Features):
        return gather_features(x, counts=y.counts, group=y.group), y
    counts, counts_y = exchange_counts([x, y], group)
    _refuse_different(counts, counts_y)
    return (
        gather_features(x, counts=counts, group=group),
        gather_features(y, counts=counts, group=group),
    )


def _refuse_different(counts_x: tuple[int, ...], counts_y: tuple[int, ...]) -> None:
    if counts_x != counts_y:
        raise ValueError(
            f"x and y must have the same number of rows on each rank, got {counts_x} and {counts_y}"
        )


def _refuse_non_finite(name: str, features: Features) -> None:
    rows = features.rows
    bad = ~rows.isfinite().all(1)
    what = "non-finite values"
    if not bad.any():
        bad = ~features.gathered.square_norms.isfinite()
        what = "values whose squares overflow"
    if not bad.any():
        return
    first = int(bad.nonzero()[0])
    rank, end = 0, features.counts[0]
    while first >= end:
        rank += 1
        end += features.counts[rank]
    raise NonFiniteError(
        f"hsic: {name} has {what} in {int(bad.sum())} of {features.total} rows, the first of "
        f"them on rank {rank}; look at the loss, the learning rate and the precision"
    )


def hsic(
    x: Tensor | Features,
    y: Tensor | Features,
    sigma_x: float,
    sigma_y: float,
    *,
    group: Group = None,
    tile: int | None = None,
    estimator: Estimator = "unbiased",
    check: bool = True,
) -> Tensor:
    """Return the Hilbert-Schmidt independence criterion of the global batch, with RBF kernels.

    The unbiased estimator is that of Song et al. (JMLR 2012, equation 5); it may be negative.
    The biased one is ``trace(KHLH)/N²`` (Gretton et al., ALT 2005).

    Every rank gets the value of the whole batch. The backward pass gives it the true partial
    derivatives of that value by its own rows, without communication. (DDP averages parameter
    gradients, so a trainer multiplies its loss by the number of ranks.) A side that needs no
    gradient costs none. Second derivatives are refused.

    Kernels are computed in float32 (float64 for float64 rows) with float64 sums, whatever the
    autocast and TF32 settings. With d the larger width, memory is O(N·d + tile²) a rank and time
    O(N²·d/W). Kernels are kept for the backward pass only if N ≤ tile.

    Squared distances come from ``|a|² + |b|² − 2ab`` on rows minus their mean. So in float32 a
    kernel entry has a relative error of about ``|x|²·1e-7/σ²``, with x the largest of these rows.
    With a median radius that is about 1e-7. Use float64 rows for clusters that are far apart
    compared with σ.

    Args:
        x: this rank's rows, ``(n, d_x)``, or :class:`Features`. Ranks may hold different
            numbers of rows, or none.
        y: the other variable of the same samples, ``(n, d_y)``, or :class:`Features`.
        sigma_x: σ of x's kernel ``exp(-|a-b|² / (2σ²))``, in the units of the rows.
        sigma_y: σ of y's kernel.
        group: process group; see :func:`gather_features`. For :class:`Features` omit it, or
            give the group in which they were gathered.
        tile: side of the square tiles in which kernels are computed; None: 1024 on a CPU, 5500
            (up to 1 GB) on a GPU.
        estimator: ``"unbiased"`` or ``"biased"``.
        check: raise on non-finite rows, which waits for the device. Without it the value and
            all gradients are NaN on every rank instead.

    Returns:
        0-d float64 tensor, with the same bits on every rank.

    Raises:
        ArgumentError: fewer than 4 rows in the global batch (1 for the biased estimator), or
            an option out of range.
        NonFiniteError: with ``check``, on all ranks, if any row is not finite or its squared
            distance to the mean overflows.
        ValueError: shapes, dtypes, row counts or groups that do not match.
    """
    if estimator not in _SMALLEST_BATCH:
        raise ArgumentError(f"estimator must be 'unbiased' or 'biased', got {estimator!r}")
    if tile is not None and tile < 1:
        raise ArgumentError(f"tile must be at least 1, got {tile}")
    for name, sigma in (("sigma_x", sigma_x), ("sigma_y", sigma_y)):
        # Exponents are multiples of 1/σ², which must neither overflow nor underflow in float32.
        if not 1e-18 < sigma < 1e18:
            raise ArgumentError(f"{name} must lie between 1e-18 and 1e18, got {sigma}")

    x, y = _as_features(x, y, group)
    if x.total < _SMALLEST_BATCH[estimator]:
        raise ArgumentError(
            f"{estimator} HSIC needs at least {_SMALLEST_BATCH[estimator]} rows in the global "
            f"batch, got {x.total}; raise the global batch"
        )
    if tile is None:
        tile = _TILE if x.local.device.type == "cpu" else _TILE_OF_GPU
    plan = Plan(estimator, x.counts, x.offset, x.offset + x.local.shape[0], tile, x.group)
    with full_precision(x.local.device):
        poison = x.gathered.poison + y.gathered.poison
        if check and math.isnan(poison.item()):
            _refuse_non_finite("x", x)
            _refuse_non_finite("y", y)
        sides = Side.of(x, float(sigma_x)), Side.of(y, float(sigma_y))
        return cast(Tensor, _HSIC.apply(x.local, y.local, *sides, poison, plan))
