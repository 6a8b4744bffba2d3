"""The median heuristic for the kernel radius: exact, and the same bits on every layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

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

# Rows of a batch that are compared at a time. Pairs of blocks are dealt to the ranks.
_BLOCK = 512
# Distances that a rank keeps between the two passes (4 bytes each) rather than compute twice.
_KEPT = 2**27
# Up to here they are put side by side first: histograms of many small parts cost more.
_JOINED = 2**22
_BINS = 2**16


class CollapsedFeaturesError(DataError):
    """At least half of the pairs of feature rows are equal, so no kernel radius fits them."""


def median_distance(
    batches: Sequence[Tensor], *, group: Group = None, name: str = "features"
) -> float:
    """Kernel radius σ: ``sqrt(numpy.median(squared distances))``.

    The median heuristic of Gretton et al. (JMLR 2012, section 8) over all distinct pairs
    i < j of rows inside each global batch, pooled over the batches and the ranks. Squared
    distances are sums of float64 squares, rounded to float32; the median of these is exact.

    The result has the same bits for any number of ranks and any distribution of a batch's
    rows over them, in any order: the distance of a pair depends on nothing but the pair
    (differences, summed over the features in a fixed order; a matrix product would not do,
    because its bits change with the shape and with the place in the matrix), and histograms
    of whole numbers have no rounding.

    Distances are never gathered: they are counted by the upper and then by the lower 16 of
    their 32 bits, whose order as integers is that of the numbers (radix selection). Memory
    is that of one global batch, plus 4 bytes a pair up to 2²⁷ pairs a rank, beyond which
    distances are computed twice.

    Args:
        batches: this rank's rows, ``(n, d)``, of each sampled global batch, in the same order
            on all ranks; n may differ and may be 0.
        group: process group; see :func:`gather_features`.
        name: what the errors call the features, such as the name of their network.

    Raises:
        CollapsedFeaturesError: the median is zero, or too small for float32.
        NonFiniteError: a feature is not finite, or half of the squared distances overflow
            float32.
        ValueError: shapes that do not fit, or no pair at all. All on every rank alike.
    """
    counts = _counts_of_batches(batches, group)
    pairs = sum(math.comb(sum(rows), 2) for rows in counts)
    if pairs == 0:
        raise ValueError(f"{name}: the median distance needs a batch of at least two rows")
    device = batches[0].device
    _, world = rank_and_world(group)

    # Decided from numbers that all ranks share: computing distances takes collectives.
    if pairs <= _KEPT * world:
        kept = list(_distance_bits(batches, counts, group, name))
        if kept and pairs <= _JOINED:
            kept = [torch.cat(kept)]

    def bits() -> Iterable[Tensor]:
        if pairs <= _KEPT * world:
            return kept
        return _distance_bits(batches, counts, group, name)

    upper = torch.zeros(_BINS, dtype=torch.int64, device=device)
    for part in bits():
        upper += torch.bincount(part >> 16, minlength=_BINS)
    _all_reduce(upper, group)
    middle = [_select(upper, position) for position in ((pairs - 1) // 2, pairs // 2)]

    # The two middle values may lie in different bins: a histogram for each.
    lower = torch.zeros((2, _BINS), dtype=torch.int64, device=device)
    for part in bits():
        for histogram, (high, _) in zip(lower, middle, strict=True):
            histogram += torch.bincount(part[part >> 16 == high] & (_BINS - 1), minlength=_BINS)
    _all_reduce(lower, group)
    chosen = [
        (high << 16) | _select(histogram, rest)[0]
        for histogram, (high, rest) in zip(lower, middle, strict=True)
    ]
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
    """Rows of each rank in each batch, after all ranks agreed on the number of batches."""
    if batches:
        device = batches[0].device
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers = all_gather(torch.tensor(len(batches), device=device), group).tolist()
    if len(set(numbers)) > 1:
        raise ValueError(f"ranks must pass the same number of batches, got {numbers}")
    return exchange_counts(batches, group) if batches else []


def _distance_bits(
    batches: Sequence[Tensor], counts: Sequence[tuple[int, ...]], group: Group, name: str
) -> Iterator[Tensor]:
    """Yield this rank's share of the squared distances, float32 bits as int32.

    Blocks of rows, and pairs of blocks, are dealt to the ranks in turn.
    """
    rank, world = rank_and_world(group)
    turn = 0
    for number, (local, rows_of_rank) in enumerate(zip(batches, counts, strict=True)):
        rows = gather_features(local, counts=rows_of_rank, group=group).rows
        if rows.numel() and not torch.stack(torch.aminmax(rows)).isfinite().all():
            raise NonFiniteError(
                f"{name}: sampled batch {number} has non-finite rows; look at the loss, the "
                "learning rate and the precision"
            )
        blocks = torch.split(rows.double(), _BLOCK)
        for i, block in enumerate(blocks):
            for j in range(i, len(blocks)):
                turn += 1
                if turn % world == rank:
                    squared = (
                        _squared_within(block) if i == j else _squared_across(block, blocks[j])
                    )
                    yield squared.float().view(torch.int32)


def _squared_within(rows: Tensor) -> Tensor:
    # pdist walks the features of one pair at a time, differences first: (a - b)² has the
    # same bits as (b - a)², and no other pair has a part in them.
    return torch.pdist(rows).square_()


def _squared_across(a: Tensor, b: Tensor) -> Tensor:
    # With half of the distances thrown away this is still faster than cdist, whose loop over
    # the features of a pair is not vectorised; and all pairs go through the same code.
    i, j = torch.triu_indices(len(a) + len(b), len(a) + len(b), offset=1, device=a.device)
    return _squared_within(torch.cat([a, b]))[(i < len(a)) & (j >= len(a))]


def _all_reduce(histogram: Tensor, group: Group) -> None:
    _, world = rank_and_world(group)
    if group is not LOCAL and world > 1:
        dist.all_reduce(histogram, group=group)


def _select(histogram: Tensor, position: int) -> tuple[int, int]:
    """Return the bin of the value at ``position`` in sorted order, and its place in the bin."""
    ends = histogram.cumsum(0)
    chosen = int(torch.searchsorted(ends, position, right=True))
    return chosen, position - int(ends[chosen] - histogram[chosen])
