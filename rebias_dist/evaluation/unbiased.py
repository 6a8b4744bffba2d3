"""The unbiased accuracy: the mean over cells of class and texture cluster.

A network that relies on texture alone has a low accuracy in the cells with untypical textures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_CELL = 10  # images; smaller cells are left out (Bahng et al., 2020, section 4.3)


def cell_counts(
    labels: NDArray[np.int64], right: NDArray[np.bool_], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the images and the right predictions in each non-empty cell (class × cluster).

    Args:
        labels: ``[n]``, not negative.
        right: ``[n]``, whether the prediction is right.
        clusters: ``[n]``; -1 for an image outside every cluster, which is in no cell.

    Returns:
        Two arrays with an entry for each cell, in the order of (class, cluster).
    """
    inside = clusters >= 0
    cells = labels[inside] * (clusters.max(initial=0) + 1) + clusters[inside]
    images = np.bincount(cells)
    correct = np.bincount(cells, weights=right[inside]).astype(np.int64)
    return images[images > 0], correct[images > 0]


def cell_mean(images: NDArray[np.int64], correct: NDArray[np.int64]) -> float:
    """Return the unbiased accuracy of one clustering, in [0, 1]: the mean over its large cells.

    Each cell with at least ``SMALLEST_CELL`` images has the same weight. NaN if there is none.

    Args:
        images: for each cell, from :func:`cell_counts`.
        correct: for each cell, from :func:`cell_counts`.
    """
    enough = images >= SMALLEST_CELL
    return float((correct[enough] / images[enough]).mean()) if enough.any() else float("nan")
