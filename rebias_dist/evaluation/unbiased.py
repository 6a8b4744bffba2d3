"""Accuracy that no texture can carry: over cells of class and texture cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_CELL = 10  # images; a cell with fewer says too little (Bahng et al., 2020, section 4.3)


def cell_counts(
    labels: NDArray[np.int64], right: NDArray[np.bool_], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images and the right answers in each cell (class × cluster) that is not empty.

    Args:
        labels: ``[n]``, not negative.
        right: ``[n]``, whether the prediction is.
        clusters: ``[n]``, -1 for an image outside every cluster, which is in no cell.

    Returns:
        Two arrays with an entry for each cell, in the order of (class, cluster).
    """
    inside = clusters >= 0
    cells = labels[inside] * (clusters.max(initial=0) + 1) + clusters[inside]
    images = np.bincount(cells)
    correct = np.bincount(cells, weights=right[inside]).astype(np.int64)
    return images[images > 0], correct[images > 0]


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
    means = [cell_mean(*cell_counts(labels, right, clusters)) for clusters in clusterings]
    return float(np.mean(means)) if means else float("nan")


def cell_mean(images: NDArray[np.int64], correct: NDArray[np.int64]) -> float:
    """Return the mean accuracy of the cells with enough images, NaN where there is none."""
    enough = images >= SMALLEST_CELL
    return float((correct[enough] / images[enough]).mean()) if enough.any() else float("nan")
