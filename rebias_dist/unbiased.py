"""Accuracy that no texture can carry: over cells of class and texture cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_CELL = 10  # images; a cell with fewer says too little (Bahng et al., 2020, section 4.3)


def unbiased_accuracy(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], clusterings: NDArray[np.int64]
) -> float:
    """Return the unbiased accuracy, in [0, 1], of predictions on clustered images.

    For one clustering it is the mean of the accuracies in the cells (class × cluster) that hold
    at least ``SMALLEST_CELL`` images, each cell with the same weight; of several it is the mean
    of theirs. Images outside every cluster (-1) are in no cell.

    Args:
        labels: ``[n]``, not negative.
        predictions: ``[n]``.
        clusterings: ``[c, n]``, the cluster of each image, -1 for none.

    Returns:
        NaN if a clustering has no cell that is large enough.

    Raises:
        ValueError: the shapes do not fit.
    """
    if clusterings.ndim != 2 or not labels.shape == predictions.shape == clusterings.shape[1:]:
        raise ValueError(
            f"labels {labels.shape}, predictions {predictions.shape} and clusterings "
            f"{clusterings.shape} do not fit; they are [n], [n] and [c, n]"
        )
    right = labels == predictions
    means = []
    for clusters in clusterings:
        inside = clusters >= 0
        cells = labels[inside] * (clusters.max(initial=0) + 1) + clusters[inside]
        images = np.bincount(cells)
        correct = np.bincount(cells, weights=right[inside])
        enough = images >= SMALLEST_CELL
        means.append((correct[enough] / images[enough]).mean() if enough.any() else np.nan)
    return float(np.mean(means)) if means else float("nan")
