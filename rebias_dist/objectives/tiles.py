"""The tiles of the kernel matrices that a rank computes, and how it computes them."""

from __future__ import annotations

import math
import sys
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
    """The factors of an estimator's sums, as the formulas of ``rbf_hsic`` name them."""

    norm: float
    row: float
    total: float


def coefficients(estimator: Estimator, n: int) -> Coefficients:
    """Return the coefficients for a global batch of ``n`` rows."""
    if estimator == "unbiased":
        return Coefficients(1 / (n * (n - 3)), 1 / (n - 2), 1 / ((n - 1) * (n - 2)))
    return Coefficients(1 / n**2, 1 / n, 1 / n**2)


class Block(NamedTuple):
    """Rows ``i0:i1`` × columns ``j0:j1`` of the kernels, numbered in the global batch."""

    i0: int
    i1: int
    j0: int
    j1: int
    mirrored: bool  # the block at (j, i) is this one's transpose and is not computed

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns."""
        return self.i1 - self.i0, self.j1 - self.j0

    def diagonal(self, tile: Tensor) -> Tensor:
        """Return a view of the tile's entries that are on the diagonal of the global matrix."""
        if not self.j0 <= self.i0 < self.j1:
            return tile.new_empty(0)
        return tile.diagonal(self.i0 - self.j0)


class Plan(NamedTuple):
    """All that a call of ``hsic`` needs besides the data."""

    estimator: Estimator
    counts: tuple[int, ...]
    lo: int  # this rank's rows are lo:hi of the global batch
    hi: int
    tile: int
    group: Group

    @property
    def total(self) -> int:
        """Number of rows of the global batch, N."""
        return sum(self.counts)

    @property
    def one_block(self) -> bool:
        """Whether this rank computes everything in one tile."""
        return self.total <= self.tile

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks of this rank's rows; in its own square only one triangle of blocks."""
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
        """Return memory for one tile of the largest shape, in the dtype of ``like``."""
        size = min(self.tile, self.hi - self.lo) * min(self.tile, self.total)
        return like.new_empty(size)

    def strips(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return memory for a strip of each of two tiles, for :func:`add_sums`."""
        rows = min(_strip(like), self.tile, self.hi - self.lo)
        size = rows * min(self.tile, self.total)
        return like.new_empty(size), like.new_empty(size)


@dataclass(frozen=True)
class Side:
    """One of the two variables, with its kernel."""

    rows: Tensor  # (N, d), centred
    square_norms: Tensor  # (N,)
    sigma: float
    shift: Tensor  # 0-d bool: tiles hold K − 1, not K

    @classmethod
    def of(cls, features: Features, sigma: float) -> Side:
        """Return the side with a kernel of radius ``sigma`` over all gathered rows."""
        # If every exponent is above -2, K − 1 loses hardly any digits and may gain many.
        wide = features.gathered.largest_difference < 2 * sigma / features.rows.shape[1] ** 0.5
        rows = features.gathered.centred
        return cls(rows, features.gathered.square_norms, sigma, wide)

    def tile(self, block: Block, estimator: Estimator, workspace: Tensor) -> Tensor:
        """Compute K − shift on a block; the unbiased estimator's diagonal is 0.

        The result is a view of ``workspace``.
        """
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
        else:  # compute both, because reading ``shift`` would make the host wait
            torch.where(self.shift, tile.expm1(), tile.exp(), out=tile)
        if estimator == "unbiased":
            block.diagonal(tile).zero_()
        return tile

    def times_kernel(self, M: Tensor, tile: Tensor) -> None:
        """Multiply ``M`` by K in place; ``tile`` is K − shift."""
        if tile.device.type == "cpu" and not self.shift:
            M.mul_(tile)
        else:
            M.mul_(tile + self.shift)


def _strip(like: Tensor) -> int:
    """Return the most rows of a strip: on a GPU those of any tile, because a launch costs more."""
    return _STRIP if like.device.type == "cpu" else sys.maxsize


def add_sums(
    tiles: Sequence[Tensor],
    sums: Sequence[Tensor],
    block: Block,
    lo: int,
    strips: Sequence[Tensor],
    product: Tensor | None = None,
) -> None:
    """Add row sums of one or two tiles to ``sums``, and the sum of their product to ``product``.

    Everything is added in float64. A mirrored block counts for its transpose too.

    Args:
        tiles: one or two, as made by :meth:`Side.tile`.
        sums: for each tile, the row sums of this rank's rows, float64.
        block: of the tiles.
        lo: this rank's first row.
        strips: from :meth:`Plan.strips`.
        product: 0-d float64; None: not needed.
    """
    rows, columns = block.shape
    for at in range(0, rows, _strip(tiles[0])):
        count = min(_strip(tiles[0]), rows - at)
        wide = [strip[: count * columns] for strip in strips[: len(tiles)]]
        first = block.i0 - lo + at
        for strip, tile, row_sums in zip(wide, tiles, sums, strict=True):
            strip = strip.view(count, columns).copy_(tile[at : at + count])
            row_sums[first : first + count].add_(strip.sum(1))
            if block.mirrored:
                row_sums[block.j0 - lo : block.j1 - lo].add_(strip.sum(0))
        if product is not None:
            product.add_(torch.dot(*wide), alpha=2 if block.mirrored else 1)
