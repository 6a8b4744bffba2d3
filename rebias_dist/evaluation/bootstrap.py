"""95 % bootstrap intervals of accuracies, over the samples of a split.

They show how much the figures depend on the choice of the samples. They do not show how much
another seed of the training would change; that takes several runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rebias_dist.evaluation.groups import interval
from rebias_dist.evaluation.unbiased import SMALLEST_CELL

RESAMPLES = 1000
_SEED = 0
_ENTRIES = 2_000_000  # counts that are in memory at a time
_LOW, _HIGH = 2.5, 97.5  # percent


def intervals(
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    conflicting: NDArray[np.bool_],
    clusterings: NDArray[np.int64],
    classes: int,
    aligned: NDArray[np.bool_],
) -> dict[str, Any]:
    """Return percentile intervals ``[low, high]`` of accuracies, None where there is no sample.

    n of the n samples are drawn with replacement, ``RESAMPLES`` times, always with the same seed.
    The cells of the unbiased accuracy are those with enough of the original samples. If all samples
    are right, or none is, all draws are alike; then an accuracy has Wilson's interval.

    Args:
        labels: ``[n]``.
        right: ``[n]``, whether the prediction is right.
        conflicting: ``[n]``, whether a sample has another bias than its class goes with.
        clusterings: ``[c, n]``, -1 for a sample outside every cluster.
        classes: number of classes.
        aligned: ``[n]``, whether a sample has the bias that its class goes with.

    Returns:
        ``accuracy``, ``aligned``, ``conflicting``, ``unbiased``, and ``by_class`` with one for each
        class.
    """
    n = len(labels)
    # Samples with equal rows are interchangeable, so only the number of each kind is drawn.
    # aligned is last: where all samples have a bias, it divides no kind, and the draws are the
    # same as without it.
    rows = np.stack([labels, right, conflicting, *clusterings, aligned], axis=1)
    kinds, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    side = np.where(conflicting[first], 0, np.where(aligned[first], 1, -1))
    groups = [labels[first], side, np.zeros(len(kinds), np.int64)]
    sizes = [classes, 2, 1]
    for clusters in clusterings:
        cell, number = _large_cells(labels, clusters)
        groups.append(cell[first])
        sizes.append(number)
    member = sparse.hstack([_membership(of, size) for of, size in zip(groups, sizes, strict=True)])
    member = sparse.csr_array(member)
    right_member = sparse.csr_array(member.multiply(right[first][:, None]))

    drawn = []
    for counts in _resamples(n, count / n):
        with np.errstate(invalid="ignore"):  # a cell may be empty in a resample
            drawn.append((counts @ right_member) / (counts @ member))
    accuracy = np.concatenate(drawn)
    by_class, sides, total, *cells = np.split(accuracy, np.cumsum(sizes)[:-1], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # about empty cells
        means = [np.nanmean(cell, axis=1) for cell in cells]
        return {
            "accuracy": _interval(total[:, 0], n),
            "aligned": _interval(sides[:, 1], int(aligned.sum())),
            "conflicting": _interval(sides[:, 0], int(conflicting.sum())),
            "unbiased": _interval(np.mean(means, axis=0)) if means else None,
            "by_class": [
                _interval(column, samples)
                for column, samples in zip(
                    by_class.T, np.bincount(labels, minlength=classes).tolist(), strict=True
                )
            ],
        }


def _large_cells(
    labels: NDArray[np.int64], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Return each sample's cell, -1 if that has too few samples, and the number of the others."""
    cells = np.where(clusters < 0, -1, labels * (clusters.max(initial=0) + 1) + clusters)
    names, place, count = np.unique(cells, return_inverse=True, return_counts=True)
    enough = (count >= SMALLEST_CELL) & (names >= 0)
    number = np.where(enough, np.cumsum(enough) - 1, -1)
    return number[place], int(enough.sum())


def _membership(group: NDArray[np.int64], size: int) -> sparse.csr_array:
    """Return ``[kinds, size]``: 1 where a kind is in a group."""
    inside = np.flatnonzero(group >= 0)
    ones = np.ones(len(inside))
    return sparse.csr_array((ones, (inside, group[inside])), shape=(len(group), size))


def _resamples(n: int, shares: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    random = np.random.default_rng(_SEED)
    at_once = max(1, _ENTRIES // len(shares))
    for begin in range(0, RESAMPLES, at_once):
        yield random.multinomial(n, shares, size=min(at_once, RESAMPLES - begin))


def _interval(values: NDArray[np.float64], samples: int = 0) -> list[float] | None:
    """Return the interval of drawn ``values``; ``samples``: of a share, 0: of a mean of shares."""
    known = values[np.isfinite(values)]
    if samples and len(known) and known.min() == known.max():
        return interval(float(known[0]), samples)
    return np.percentile(known, [_LOW, _HIGH]).tolist() if len(known) else None
