"""The median heuristic for the kernel radius: exact, with the same bits on every layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.errors import DataError, NonFiniteError
from rebias_dist.objectives.features import (
    LOCAL,
    Group,
    all_gather,
    exchange_counts,
    gather_features,
    rank_and_world,
)
from rebias_dist.objectives.full_precision import full_precision

# Rows in a block. Each pair of blocks is compared at once, by one rank.
_BLOCK = 512
# Up to this many pairs a rank keeps their bounds (8 bytes each) between the passes. With more it
# computes them again.
_KEPT = 2**25
# Entries of feature rows that are subtracted at a time.
_AT_ONCE = 2**21
_BINS = 2**16

# Lower and upper bounds of the squared distances, an entry a pair, as the bits of float32 in int32.
_Bounds: TypeAlias = tuple[Tensor, Tensor]


class CollapsedFeaturesError(DataError):
    """At least half of the pairs of feature rows are equal, so no kernel radius fits them."""


def median_distance(
    batches: Sequence[Tensor], *, group: Group = None, name: str = "features"
) -> float:
    """Return the kernel radius σ: ``sqrt(numpy.median(squared distances))``.

    The median heuristic of Gretton et al. (JMLR 2012, section 8) over all distinct pairs
    i < j of rows inside each global batch, pooled over the batches and the ranks. Squared
    distances are sums of float64 squares, rounded to float32; the median of these is exact.

    The result has the same bits for any number of ranks and any distribution of a batch's rows
    over them, in any order. For the distance of a pair depends only on the pair: its differences
    are squared and added in a fixed order, each operation as IEEE 754 defines it.

    Only few distances are computed in this way. First a matrix product gives all of them
    approximately, with a known bound of the error; its bits depend on the shape and on the place
    in the matrix. The medians of the lower and of the upper bounds enclose the median. Pairs
    whose bounds lie on one side of both need only be counted.

    The ranks exchange only histograms, of the upper and then of the lower 16 of the numbers' 32
    bits (radix selection: positive floats sort like their bits). Memory is that of one global
    batch, plus 8 bytes a pair. Beyond 2²⁵ pairs a rank, bounds are not kept but computed again for
    each pass.

    Args:
        batches: this rank's rows, ``(n, d)``, of each sampled global batch, in the same order
            on all ranks; n may differ and may be 0.
        group: process group; see :func:`gather_features`.
        name: name of the features in errors, such as that of their network.

    Raises:
        CollapsedFeaturesError: the median is zero, or too small for float32.
        NonFiniteError: a feature is not finite, or half of the squared distances overflow
            float32.
        ValueError: the shapes do not match, or there is no pair. All ranks raise the same error.
    """
    counts = _counts_of_batches(batches, group)
    pairs = sum(math.comb(sum(rows), 2) for rows in counts)
    if pairs == 0:
        raise ValueError(f"{name}: the median distance needs a batch of at least two rows")
    positions = ((pairs - 1) // 2, pairs // 2)
    # The bounds hold for float32 products, not for those of autocast or TF32.
    with full_precision(batches[0].device), torch.no_grad():
        share = _Share(batches, counts, pairs, group, name)
        low, high = _order_statistics(share.bounds, positions, share.device, group)
        below, near = share.split(low, high)
    below = int(_sum_over_ranks(torch.tensor(below, device=share.device), group))
    # ``near`` has many more than the two middle pairs only where many pairs have one distance.
    chosen = _order_statistics(
        lambda: [(near, near)],
        (positions[0] - below, positions[1] - below),
        share.device,
        group,
    )
    squared = torch.tensor(chosen, dtype=torch.int32).view(torch.float32).double().mean().item()
    if squared == 0:
        raise CollapsedFeaturesError(
            f"{name}: the median distance of {pairs} pairs of rows is 0, so the features have "
            "collapsed; set a fixed radius or look at the training"
        )
    if not math.isfinite(squared):
        raise NonFiniteError(
            f"{name}: the median squared distance of {pairs} pairs of rows overflows float32; "
            "set a fixed radius or look at the training"
        )
    return math.sqrt(squared)


def _counts_of_batches(batches: Sequence[Tensor], group: Group) -> list[tuple[int, ...]]:
    """Return the rows of each rank in each batch; checks that all ranks pass as many batches."""
    if batches:
        device = batches[0].device
    else:
        device = torch.device("cpu")
        if group is not LOCAL and dist.is_initialized() and dist.get_backend(group) == "nccl":
            device = torch.device("cuda")
    numbers = all_gather(torch.tensor(len(batches), device=device), group).tolist()
    if len(set(numbers)) > 1:
        raise ValueError(f"ranks must pass the same number of batches, got {numbers}")
    return exchange_counts(batches, group) if batches else []


@dataclass(frozen=True)
class _Tile:
    """Pairs of rows that one rank compares: those inside a block, or those of two blocks."""

    a: Tensor  # (n, d), as gathered
    b: Tensor  # (m, d); ``a`` itself in a block's own tile
    centred_a: Tensor  # (n, d), float32
    centred_b: Tensor  # (m, d), float32

    def __len__(self) -> int:
        """Return the number of pairs."""
        n, m = len(self.a), len(self.b)
        return math.comb(n, 2) if self.a is self.b else n * m

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the row numbers of each pair, in ``a`` and in ``b``."""
        n, m, device = len(self.a), len(self.b), self.a.device
        if self.a is self.b:
            i, j = torch.triu_indices(n, n, offset=1, device=device)
            return i, j
        each = torch.arange(n * m, device=device)
        return each // m, each % m

    def bounds(self) -> _Bounds:
        """Return a lower and an upper bound of each pair's squared distance, as float32 bits."""
        a, b = self.centred_a, self.centred_b
        products = a @ b.mT
        if a is b:
            norms_a = norms_b = products.diagonal()
        else:
            norms_a, norms_b = torch.linalg.vecdot(a, a), torch.linalg.vecdot(b, b)
        norms = norms_a[:, None] + norms_b
        approximate = torch.sub(norms, products, alpha=2)
        # Higham, Accuracy and Stability of Numerical Algorithms, (3.5): a sum of d products, in
        # any order, has an error of at most d / (1 - d u) units of roundoff u. This applies to the
        # norms and twice to the products, where |ab| is at most half of a² + b². The 32 covers the
        # few roundings of centring and adding, 2⁻¹²⁶ covers underflow.
        error = norms.mul_(2.0**-24).add_(2.0**-126).mul_(2.25 * a.shape[1] + 32)
        # Where it overflowed the bounds are 0 and infinity.
        low = (approximate - error).nan_to_num_(0, math.inf).clamp_(min=0)
        high = approximate.add_(error).nan_to_num_(math.inf, math.inf)
        bits = low.view(torch.int32).flatten(), high.view(torch.int32).flatten()
        if a is b:
            i, j = self.pairs()
            at = i * len(b) + j
            return bits[0][at], bits[1][at]
        return bits

    def distances(self, chosen: Tensor) -> Tensor:
        """Return the exact squared distances of the pairs with these numbers, as float32 bits."""
        i, j = (rows[chosen] for rows in self.pairs())
        step = max(_AT_ONCE // max(self.a.shape[1], 1), 1)
        parts = [
            _squared_distances(self.a[i[at : at + step]], self.b[j[at : at + step]])
            for at in range(0, len(chosen), step)
        ]
        return torch.cat([chosen.new_empty(0, dtype=torch.int32), *parts])


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distance of each row of ``a`` from that of ``b``, as float32 bits.

    The squares are added by halves, element by element, so that no library chooses an order that
    depends on the shape. (a - b)² and (b - a)² have the same bits.
    """
    squares = a.double().sub_(b.double()).square_()
    width = squares.shape[1]
    while width > 1:
        half = (width + 1) // 2
        squares[:, : width - half] += squares[:, half:width]
        width = half
    return squares[:, :1].sum(1).float().view(torch.int32)


class _Share:
    """The pairs that this rank compares."""

    def __init__(
        self,
        batches: Sequence[Tensor],
        counts: Sequence[tuple[int, ...]],
        pairs: int,
        group: Group,
        name: str,
    ) -> None:
        self._batches, self._counts, self._group, self._name = batches, counts, group, name
        self.device = batches[0].device
        self._rank, self._world = rank_and_world(group)
        # Computing bounds is a collective, so this is decided by numbers that all ranks share.
        self._kept: _Bounds | None = None
        if pairs <= _KEPT * self._world:
            none = torch.empty(0, dtype=torch.int32, device=self.device)
            parts = [(none, none), *(tile.bounds() for tile in self._tiles())]
            self._kept = (
                torch.cat([low for low, _ in parts]),
                torch.cat([high for _, high in parts]),
            )

    def bounds(self) -> Iterable[_Bounds]:
        """Return the bounds of this rank's pairs, in any number of parts."""
        return (tile.bounds() for tile in self._tiles()) if self._kept is None else [self._kept]

    def split(self, low: int, high: int) -> tuple[int, Tensor]:
        """Return how many pairs are certainly below ``low``, and the distances near the median.

        The latter are the exact squared distances of the other pairs whose lower bound is at most
        ``high``. All distances are float32 bits.
        """

        def judge(bounds: _Bounds) -> tuple[int, Tensor]:
            not_below = bounds[1] >= low
            return len(not_below) - int(not_below.sum()), not_below & (bounds[0] <= high)

        below, near = 0, [torch.empty(0, dtype=torch.int32, device=self.device)]
        if self._kept is not None:
            below, chosen = judge(self._kept)
        begin = 0
        for tile in self._tiles(bounds=self._kept is None):
            if self._kept is not None:
                part = chosen[begin : begin + len(tile)]
                begin += len(tile)
            else:
                fewer, part = judge(tile.bounds())
                below += fewer
            numbers = part.nonzero().squeeze(1)
            if len(numbers):
                near.append(tile.distances(numbers))
        return below, torch.cat(near)

    def _tiles(self, bounds: bool = True) -> Iterator[_Tile]:
        """Yield this rank's tiles: blocks and pairs of blocks go to the ranks in turn.

        ``bounds`` says whether the tiles' bounds are needed. They are on the first call, which
        also checks that the rows are finite.
        """
        turn = 0
        for number, (local, rows_of_rank) in enumerate(
            zip(self._batches, self._counts, strict=True)
        ):
            rows = gather_features(local, counts=rows_of_rank, group=self._group).rows
            centred = rows
            if bounds:
                if rows.numel() and not torch.stack(torch.aminmax(rows)).isfinite().all():
                    raise NonFiniteError(
                        f"{self._name}: sampled batch {number} has non-finite rows; look at the "
                        "loss, the learning rate and the precision"
                    )
                # Centred, because float32 has the smallest error near the origin.
                wide = rows if rows.dtype == torch.float64 else rows.float()
                centred = (wide - wide.mean(0)).float()
            parts = torch.split(centred, _BLOCK)
            blocks = torch.split(rows, _BLOCK)
            for i in range(len(blocks)):
                for j in range(i, len(blocks)):
                    turn += 1
                    if turn % self._world == self._rank:
                        yield _Tile(blocks[i], blocks[j], parts[i], parts[j])


def _order_statistics(
    parts: Callable[[], Iterable[_Bounds]],
    positions: tuple[int, int],
    device: torch.device,
    group: Group,
) -> tuple[int, int]:
    """Select a value among the lower bounds and one among the upper bounds of all ranks' pairs.

    Args:
        parts: returns this rank's bounds, not negative; called twice.
        positions: of the value among the lower and among the upper bounds in sorted order, from 0.
        device: of the bounds.
        group: process group.
    """

    def histograms(of: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Count the numbers 0 to 2¹⁶ - 1 that ``of`` makes of the lower and the upper bounds."""
        counted: Tensor | None = None
        for part in parts():
            both = torch.stack(
                [torch.bincount(of(bits, i), minlength=_BINS) for i, bits in enumerate(part)]
            )
            counted = both if counted is None else counted.add_(both)
        if counted is None:
            counted = torch.zeros((2, _BINS), dtype=torch.int64, device=device)
        return _sum_over_ranks(counted, group)

    upper = histograms(lambda bits, i: bits >> 16)
    middle = [_select(*one) for one in zip(upper, positions, strict=True)]
    lower = histograms(lambda bits, i: bits[bits >> 16 == middle[i][0]] & (_BINS - 1))
    first, second = (
        (high << 16) | _select(histogram, rest)[0]
        for histogram, (high, rest) in zip(lower, middle, strict=True)
    )
    return first, second


def _sum_over_ranks(counts: Tensor, group: Group) -> Tensor:
    _, world = rank_and_world(group)
    if group is not LOCAL and world > 1:
        dist.all_reduce(counts, group=group)
    return counts


def _select(histogram: Tensor, position: int) -> tuple[int, int]:
    """Return the bin of the value at ``position`` in sorted order, and its place in the bin."""
    ends = histogram.cumsum(0)
    chosen = int(torch.searchsorted(ends, position, right=True))
    return chosen, position - int(ends[chosen] - histogram[chosen])
