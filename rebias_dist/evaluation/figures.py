"""The figures of one network on one split, from its predictions; this module needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebias_dist.evaluation.bootstrap import intervals
from rebias_dist.evaluation.groups import worst_group
from rebias_dist.evaluation.unbiased import SMALLEST_CELL, cell_counts, cell_mean

CALIBRATION_BINS = 15
"""Bins of equal width between confidence 0 and 1 (Guo et al., ICML 2017)."""


@dataclass(frozen=True)
class Truth:
    """Labels, biases and texture clusters of a split's n samples (n is at least 1).

    ``labels`` and ``bias`` (-1: none) are int64 [n], ``clusterings`` int64 [c, n] (-1: none; c
    may be 0); ``classes`` is the number of classes. ``aligned`` has the bias that goes with each
    class, int64 [classes] (-1: none), see :class:`rebias_dist.config.bias.BiasRule`; ``values`` is
    the number of values of the bias, at least.
    """

    labels: NDArray[np.int64]
    bias: NDArray[np.int64]
    clusterings: NDArray[np.int64]
    classes: int
    aligned: NDArray[np.int64]
    values: int = 0


def network_figures(
    truth: Truth,
    predicted: NDArray[np.int64],
    confidence: NDArray[np.float64],
    *,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Return all figures of one network's predictions on a split, as plain JSON data.

    Accuracies are in [0, 1], and None where there is no sample to measure them on:

    ``accuracy``, ``standard_error`` (binomial), ``correct``
        over all samples, each with the same weight;
    ``confusion``
        number of samples, label × prediction;
    ``by_class``, ``worst_class``
        the accuracy of each class, and the class (``label``, ``accuracy``) with the lowest;
    ``bias_correct``, ``bias_count``
        numbers of right predictions and of samples, label × bias, among samples with a bias;
    ``aligned``, ``conflicting``, ``follows_bias``
        the accuracy on samples with the bias that goes with their class (aligned), the accuracy on
        those with another bias (conflicting), and the fraction of the conflicting samples for which
        a class is predicted that goes with their bias;
    ``aligned_samples``, ``conflicting_samples``
        their numbers;
    ``worst_group``
        the cell (``label``, ``bias``, ``accuracy``, ``samples``, Wilson's ``interval``) with the
        lowest accuracy among those with at least ``SMALLEST_CELL`` samples;
    ``unbiased``, ``clusterings``
        the accuracy over cells of class and texture cluster, and for each clustering its
        ``accuracy``, the number of ``cells`` that are large enough, the number ``left_out``, and
        the number of ``samples`` with a cluster;
    ``calibration``
        ``ece``, the expected calibration error, and ``bins``, for each bin the number of
        samples, their mean confidence and their accuracy;
    ``intervals``
        with ``with_intervals``: 95 % bootstrap intervals of ``accuracy``, ``unbiased``,
        ``aligned``, ``conflicting`` and each of ``by_class``; Wilson's where all or none are right.

    Args:
        truth: of the split's n samples.
        predicted: int64 [n], labels.
        confidence: float64 [n], probability of the prediction.
        with_intervals: compute the intervals.
    """
    labels, classes = truth.labels, truth.classes
    right = predicted == labels
    n, correct = len(labels), int(right.sum())
    accuracy = correct / n
    confusion = _table(labels, predicted, (classes, classes))
    of_class = np.bincount(labels, minlength=classes)
    by_class = [_ratio(confusion[c, c], of_class[c]) for c in range(classes)]
    clusterings = [
        _clustering(*cell_counts(labels, right, clusters)) for clusters in truth.clusterings
    ]
    own = truth.aligned[labels]
    aligned = (truth.bias >= 0) & (truth.bias == own)
    conflicting = (truth.bias >= 0) & (own >= 0) & ~aligned
    found = {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / n),
        "correct": correct,
        "confusion": confusion.tolist(),
        "by_class": by_class,
        "worst_class": _worst_class(by_class),
        **_by_bias(truth, predicted, aligned, conflicting),
        "unbiased": _mean([clustering["accuracy"] for clustering in clusterings]),
        "clusterings": clusterings,
        "calibration": calibration(confidence, right),
    }
    if with_intervals:
        found["intervals"] = intervals(
            labels, right, conflicting, truth.clusterings, classes, aligned
        )
    return found


def _by_bias(
    truth: Truth,
    predicted: NDArray[np.int64],
    aligned: NDArray[np.bool_],
    conflicting: NDArray[np.bool_],
) -> dict[str, Any]:
    """Return the figures that the bias labels decide, as :func:`network_figures` has them."""
    labels, bias, right = truth.labels, truth.bias, predicted == truth.labels
    known = bias >= 0
    shape = (truth.classes, max(int(bias.max(initial=-1)) + 1, truth.values))
    count = _table(labels[known], bias[known], shape)
    correct = _table(labels[known & right], bias[known & right], shape)
    follows = conflicting & (truth.aligned[predicted] == bias)
    return {
        "bias_correct": correct.tolist(),
        "bias_count": count.tolist(),
        "aligned": _ratio((right & aligned).sum(), aligned.sum()),
        "conflicting": _ratio((right & conflicting).sum(), conflicting.sum()),
        "follows_bias": _ratio(follows.sum(), conflicting.sum()),
        "aligned_samples": int(aligned.sum()),
        "conflicting_samples": int(conflicting.sum()),
        "worst_group": worst_group(correct, count),
    }


def _table(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.int64]:
    cells = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return cells.reshape(shape)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _mean(values: list[float | None]) -> float | None:
    """Return the mean, or None if there are no values or one of them is None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _clustering(images: NDArray[np.int64], correct: NDArray[np.int64]) -> dict[str, Any]:
    accuracy, cells = cell_mean(images, correct), int((images >= SMALLEST_CELL).sum())
    return {
        "accuracy": None if math.isnan(accuracy) else accuracy,
        "cells": cells,
        "left_out": len(images) - cells,
        "samples": int(images.sum()),
    }


def _worst_class(by_class: list[float | None]) -> dict[str, Any] | None:
    known = [(value, label) for label, value in enumerate(by_class) if value is not None]
    if not known:
        return None
    value, label = min(known)
    return {"label": label, "accuracy": value}


def calibration(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the expected calibration error and its bins, as :func:`network_figures` describes.

    A confidence on the edge of two bins is in the lower one. If one is not finite, ``ece`` is None
    and there are no bins.
    """
    if not np.isfinite(confidence).all():
        return {"ece": None, "bins": []}
    place = np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1
    place = place.clip(0, CALIBRATION_BINS - 1)
    count, sums, correct = (
        np.bincount(place, weights=weights, minlength=CALIBRATION_BINS)
        for weights in (None, confidence, right)
    )
    bins = [
        [int(n), _ratio(total, n), _ratio(hits, n)]
        for n, total, hits in zip(count, sums, correct, strict=True)
    ]
    return {"ece": float(np.abs(correct - sums).sum() / len(confidence)), "bins": bins}
