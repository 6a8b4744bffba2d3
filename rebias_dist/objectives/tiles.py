"""Which parts of the kernel matrices a rank computes, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rebias_dist.objectives.features import Features, Group

Estimator: TypeAlias = Literal["unbiased", "biased"]


# Rows of a tile that are summed in float64 at a time: few, so that they stay in the cache.
_STRIP = 128


class Coefficients(NamedTuple):
    """What an estimator multiplies its sums by; see ``rbf_hsic``."""

    norm: float
    row: float
    total: float


def coefficients(estimator: Estimator, n: int) -> Coefficients:
    """Coefficients for a global batch of ``n`` rows."""
    if estimator == "unbiased":
        return Coefficients(1 / (n * (n - 3)), 1 / (n - 2), 1 / ((n - 1) * (n - 2)))
    return Coefficients(1 / n**2, 1 / n, 1 / n**2)


class Block(NamedTuple):
    """Rows ``i0:i1`` × columns ``j0:j1`` of the kernels; all in terms of the global batch."""

    i0: int
    i1: int
    j0: int
    j1: int
    mirrored: bool  # the block at (j, i) is this one's transpose, and is not walked

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.i1 - self.i0, self.j1 - self.j0

    def diagonal(self, tile: Tensor) -> Tensor:
        """The entries (i, i) of the global matrix that lie in this tile, as a view."""
        if not self.j0 <= self.i0 < self.j1:
            return tile.new_empty(0)
        return tile.diagonal(self.i0 - self.j0)


class Plan(NamedTuple):
    """What a call to hsic fixes beside the data."""

    estimator: Estimator
    counts: tuple[int, ...]
    lo: int  # this rank's rows are lo:hi of the global batch
    hi: int
    tile: int
    group: Group

    @property
    def total(self) -> int:
        """Rows of the global batch, N."""
        return sum(self.counts)

    @property
    def one_block(self) -> bool:
        """Whether one tile holds all that this rank computes."""
        return self.total <= self.tile

    def blocks(self) -> Iterator[Block]:
        """This rank's rows × all columns; of its own square only one triangle."""
        lo, hi, tile = self.lo, self.hi, self.tile
        if self.one_block:
            yield Block(lo, hi, 0, self.total, False)
            return
        others = [
            (j, min(j + tile, end))
            for begin, end in ((0, lo), (hi, self.total))
            for j in range(begin, end, tile)
        ]
        for i in range(lo, hi, tile):
            i1 = min(i + tile, hi)
            for j, j1 in others:
                yield Block(i, i1, j, j1, False)
            for j in range(i, hi, tile):
                yield Block(i, i1, j, min(j + tile, hi), j > i)

    def workspace(self, like: Tensor) -> Tensor:
        """Memory for one tile of the largest shape."""
        size = min(self.tile, self.hi - self.lo) * min(self.tile, self.total)
        return like.new_empty(size)

    def strips(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for a strip of each of two tiles, as :func:`add_sums` takes it."""
        size = min(self.tile, _STRIP) * min(self.tile, self.total)
        return like.new_empty(size), like.new_empty(size)


@dataclass(frozen=True)
class Side:
    """One of the two variables, with its kernel."""

    rows: Tensor  # (N, d), centred
    square_norms: Tensor  # (N,)
    sigma: float
    shift: Tensor  # 0-d, 1 where tiles hold K − 1, 0 where they hold K

    @classmethod
    def of(cls, features: Features, sigma: float) -> Side:
        """Kernel of radius ``sigma`` over all gathered rows."""
        # Where every exponent is above -2, K − 1 loses next to nothing, and may gain a lot.
        wide = features.gathered.largest_difference < 2 * sigma / features.rows.shape[1] ** 0.5
        rows = features.gathered.centred
        return cls(rows, features.gathered.square_norms, sigma, wide.to(rows.dtype))

    def tile(self, block: Block, estimator: Estimator, workspace: Tensor) -> Tensor:
        """K − shift on a block; the diagonal is 0 if the estimator leaves it out."""
        i, j = slice(block.i0, block.i1), slice(block.j0, block.j1)
        tile = workspace[: math.prod(block.shape)].view(block.shape)
        norms, scale = self.square_norms, 1 / self.sigma**2
        rows, columns = self.rows[i], self.rows[j].mT
        torch.addmm(norms[j], rows, columns, beta=-scale / 2, alpha=scale, out=tile)
        tile.sub_(norms[i, None], alpha=scale / 2).clamp_(max=0)  # minus |a - b|² / (2σ²)
        if estimator == "biased":
            block.diagonal(tile).zero_()
        if tile.device.type == "cpu":
            tile = tile.expm1_() if self.shift else tile.exp_()
        else:  # both, rather than have the host wait for the decision
            torch.where(self.shift > 0, tile.expm1(), tile.exp(), out=tile)
        if estimator == "unbiased":
            block.diagonal(tile).zero_()
        return tile

    def times_kernel(self, M: Tensor, tile: Tensor) -> None:
        """Multiply ``M`` by K itself, given K − shift; in place."""
        if tile.device.type == "cpu" and not self.shift:
            M.mul_(tile)
        else:
            M.mul_(tile + self.shift)


def add_sums(
    tiles: Sequence[Tensor],
    sums: Sequence[Tensor],
    block: Block,
    lo: int,
    strips: Sequence[Tensor],
    product: Tensor | None = None,
) -> None:
    """Add the row sums of one or two tiles to ``sums``, and the sum of the two's product.

    All in float64; a mirrored block counts for its transpose too. ``sums``, one a tile, are
    those of the rows from ``lo``; ``strips`` as made by :meth:`Plan.strips`.
    """
    rows, columns = block.shape
    for at in range(0, rows, _STRIP):
        count = min(_STRIP, rows - at)
        wide = [strip[: count * columns] for strip in strips[: len(tiles)]]
        first = block.i0 - lo + at
        for strip, tile, row_sums in zip(wide, tiles, sums, strict=True):
            strip = strip.view(count, columns).copy_(tile[at : at + count])
            row_sums[first : first + count].add_(strip.sum(1))
            if block.mirrored:
                row_sums[block.j0 - lo : block.j1 - lo].add_(strip.sum(0))
        if product is not None:
            product.add_(torch.dot(*wide), alpha=2 if block.mirrored else 1)
