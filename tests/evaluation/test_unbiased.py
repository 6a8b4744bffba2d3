import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebias_dist.evaluation.figures import Truth, network_figures


def unbiased_accuracy(labels, predictions, clusterings):
    truth = Truth(labels, np.full(len(labels), -1), clusterings, 9, np.arange(9))
    return network_figures(truth, predictions, np.ones(len(labels)))["unbiased"]


def _slow(labels, predictions, clusterings):
    totals = []
    for clusters in clusterings:
        cells = defaultdict(list)
        for label, prediction, cluster in zip(labels, predictions, clusters, strict=True):
            if cluster != -1:
                cells[label, cluster].append(label == prediction)
        large = [sum(cell) / len(cell) for cell in cells.values() if len(cell) >= 10]
        totals.append(sum(large) / len(large) if large else math.nan)
    return None if any(map(math.isnan, totals)) else sum(totals) / len(totals)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 300),
    classes=st.integers(1, 9),
    clusters=st.integers(1, 9),
    clusterings=st.integers(1, 3),
)
def test_it_is_the_mean_over_cells_then_over_clusterings(seed, n, classes, clusters, clusterings):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, n))
    of = rng.integers(-1, clusters, (clusterings, n))
    found = unbiased_accuracy(labels, predictions, of)
    expected = _slow(labels.tolist(), predictions.tolist(), of.tolist())
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_a_classifier_that_follows_the_texture_fails():
    labels = np.repeat([0, 1], 100)
    texture = labels.copy()
    texture[[*range(10), *range(100, 110)]] ^= 1  # ten of each class have the other's texture
    assert (labels == texture).mean() == 0.9
    assert unbiased_accuracy(labels, texture, texture[None]) == 0.5
    assert unbiased_accuracy(labels, labels, texture[None]) == 1.0


def test_nine_images_are_too_few():
    labels = np.zeros(19, dtype=np.int64)
    clusters = np.repeat([[0, 1]], [10, 9], axis=1)
    predictions = clusters[0]
    assert unbiased_accuracy(labels, predictions, clusters) == 1.0
    assert unbiased_accuracy(labels[:9], labels[:9], clusters[:, :9]) is None
