"""The figures of predictions against slow, obvious ones, and by hand."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.evaluation.bootstrap import intervals
from rebias_dist.evaluation.figures import Truth, calibration, network_figures
from rebias_dist.evaluation.groups import interval


def case(seed: int, n: int, classes: int, clusterings: int, biases: int):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, n))
    bias = rng.integers(-1, biases, n)
    clusters = rng.integers(-1, 3, (clusterings, n))
    confidence = rng.random(n)
    aligned = rng.integers(-1, biases + 1, classes)
    return Truth(labels, bias, clusters, classes, aligned), predicted, confidence


def mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None


def slow(truth: Truth, predicted, confidence) -> dict:
    samples = list(
        zip(truth.labels.tolist(), truth.bias.tolist(), predicted.tolist(), confidence, strict=True)
    )
    pairs = Counter((label, said) for label, _, said, _ in samples)
    groups, classes = defaultdict(list), defaultdict(list)
    for label, bias, said, _ in samples:
        classes[label].append(said == label)
        if bias >= 0:
            groups[label, bias].append(said == label)
    of_clusterings = []
    for clusters in truth.clusterings.tolist():
        cells = defaultdict(list)
        for (label, _, said, _), cluster in zip(samples, clusters, strict=True):
            if cluster >= 0:
                cells[label, cluster].append(said == label)
        of_clusterings.append(mean([mean(c) for c in cells.values() if len(c) >= 10]))
    c = range(truth.classes)
    rule = truth.aligned.tolist()
    ruled = [s for s in samples if s[1] >= 0 and rule[s[0]] >= 0]
    aligned = [s for s in ruled if s[1] == rule[s[0]]]
    conflicting = [s for s in ruled if s[1] != rule[s[0]]]
    large = [(mean(g), label, bias) for (label, bias), g in groups.items() if len(g) >= 10]
    ece = 0.0
    for k in range(15):
        inside = [s for s in samples if k / 15 < s[3] <= (k + 1) / 15]
        if inside:
            gap = mean([s[3] for s in inside]) - mean([s[0] == s[2] for s in inside])
            ece += len(inside) / len(samples) * abs(gap)
    return {
        "accuracy": mean([said == label for label, _, said, _ in samples]),
        "confusion": [[pairs[label, said] for said in c] for label in c],
        "by_class": [mean(classes[label]) for label in c],
        "bias_correct": [[sum(groups[label, b]) for b in _biases(truth)] for label in c],
        "bias_count": [[len(groups[label, b]) for b in _biases(truth)] for label in c],
        "conflicting": mean([s[0] == s[2] for s in conflicting]),
        "aligned": mean([s[0] == s[2] for s in aligned]),
        "follows_bias": mean([rule[s[2]] == s[1] for s in conflicting]),
        "aligned_samples": len(aligned),
        "conflicting_samples": len(conflicting),
        "worst_group": min(large, default=None),
        "unbiased": mean(of_clusterings) if None not in of_clusterings else None,
        "ece": ece,
    }


def _biases(truth: Truth) -> range:
    return range(int(truth.bias.max(initial=-1)) + 1)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 250),
    classes=st.integers(1, 6),
    clusterings=st.integers(0, 3),
    biases=st.integers(0, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_figure_is_that_of_an_obvious_implementation(seed, n, classes, clusterings, biases):
    truth, predicted, confidence = case(seed, n, classes, clusterings, biases)
    found = network_figures(truth, predicted, confidence)
    expected = slow(truth, predicted, confidence)
    for name in ("confusion", "bias_correct", "bias_count"):
        assert found[name] == expected[name]
    for name in ("aligned_samples", "conflicting_samples"):
        assert found[name] == expected[name]
    for name in ("accuracy", "conflicting", "aligned", "follows_bias", "unbiased"):
        assert found[name] == pytest.approx(expected[name], abs=1e-12)
    assert found["by_class"] == pytest.approx(expected["by_class"], abs=1e-12)
    assert found["correct"] == round(expected["accuracy"] * n)
    assert found["calibration"]["ece"] == pytest.approx(expected["ece"], abs=1e-12)
    group = found["worst_group"]
    mine = None if group is None else (group["accuracy"], group["label"], group["bias"])
    assert mine == expected["worst_group"]
    assert found["worst_class"]["accuracy"] == min(a for a in found["by_class"] if a is not None)


def test_an_example_by_hand():
    # Class 0: 12 images in cluster 0, 9 right; 9 in cluster 1, none right: too few for a cell.
    # Class 1: 10 in cluster 1, 8 right; 1 without cluster, right. Class 2 has no image.
    labels = np.repeat([0, 0, 1, 1], [12, 9, 10, 1])
    clusters = np.repeat([0, 1, 1, -1], [12, 9, 10, 1])
    right = np.concatenate([[1] * 9 + [0] * 3, [0] * 9, [1] * 8 + [0] * 2, [1]])
    predicted = np.where(right == 1, labels, 2)
    bias = np.zeros(32, int)
    truth = Truth(labels, bias, clusters[None], 3, np.arange(3))
    found = network_figures(truth, predicted, np.full(32, 0.8))
    assert found["accuracy"] == 18 / 32
    assert found["by_class"] == [9 / 21, 9 / 11, None]
    assert found["worst_class"] == {"label": 0, "accuracy": 9 / 21}
    assert found["unbiased"] == pytest.approx((9 / 12 + 8 / 10) / 2)
    assert found["clusterings"] == [
        {"accuracy": pytest.approx(0.775), "cells": 2, "left_out": 1, "samples": 31}
    ]
    assert found["confusion"] == [[9, 0, 12], [0, 9, 2], [0, 0, 0]]
    # The bias is class 0's on all: class 1 is what conflicts.
    assert (found["aligned"], found["conflicting"]) == (9 / 21, 9 / 11)
    assert found["follows_bias"] == 0
    expected = {"label": 0, "bias": 0, "accuracy": 9 / 21, "samples": 21}
    assert found["worst_group"] == {
        **expected,
        "interval": pytest.approx([0.2447, 0.6345], abs=1e-4),
    }
    assert found["calibration"]["ece"] == pytest.approx(0.8 - 18 / 32)


def test_what_is_not_measured_is_none():
    nothing = np.full(9, -1)
    truth = Truth(np.zeros(9, int), nothing, np.zeros((1, 9), int), 2, np.arange(2))
    found = network_figures(truth, np.zeros(9, int), np.full(9, math.nan), with_intervals=True)
    for name in ("aligned", "conflicting", "follows_bias", "worst_group", "unbiased"):
        assert found[name] is None
    assert found["calibration"] == {"ece": None, "bins": []}
    assert found["intervals"]["unbiased"] is found["intervals"]["conflicting"] is None
    assert found["intervals"]["by_class"] == [interval(1.0, 9), None]


@pytest.mark.parametrize("is_right", [False, True])
def test_a_share_of_none_or_all_has_an_interval_with_a_width(is_right):
    right = np.full(6, is_right)
    conflicting = np.array([True] + [False] * 5)
    aligned = np.arange(6) % 2 == 1
    labels = np.array([0, 0, 0, 0, 0, 1])
    found = intervals(labels, right, conflicting, np.zeros((0, 6), int), 3, aligned)
    assert found["accuracy"] == interval(float(is_right), 6)
    assert found["aligned"] == interval(float(is_right), 3)
    assert found["conflicting"] == interval(float(is_right), 1)
    expected = [interval(float(is_right), 5), interval(float(is_right), 1), None]
    assert found["by_class"] == expected


def test_confidences_that_are_right_have_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    honest = calibration(confidence, rng.random(200_000) < confidence)
    print(f"error of an honest classifier: {honest['ece']:.4f}")
    assert honest["ece"] < 0.01
    boast = calibration(np.ones(100), np.arange(100) < 60)
    assert boast["ece"] == pytest.approx(0.4)
    assert boast["bins"][-1] == [100, 1.0, 0.6]


def test_intervals_are_those_of_resampled_samples():
    truth, predicted, _ = case(5, 240, 3, 2, 3)
    right = predicted == truth.labels
    conflicting = (truth.bias >= 0) & (truth.bias != truth.labels)
    aligned = truth.bias == truth.labels
    found = intervals(truth.labels, right, conflicting, truth.clusterings, 3, aligned)
    again = intervals(truth.labels, right, conflicting, truth.clusterings, 3, aligned)
    assert found == again

    rng = np.random.default_rng(1)
    draws = defaultdict(list)
    for _ in range(2000):
        chosen = rng.integers(0, 240, 240)
        labels, hits = truth.labels[chosen], right[chosen]
        draws["accuracy"].append(hits.mean())
        draws["conflicting"].append(hits[conflicting[chosen]].mean())
        draws["aligned"].append(hits[aligned[chosen]].mean())
        draws["class 1"].append(hits[labels == 1].mean())
        means = []
        for clusters in truth.clusterings:
            cells = labels * 3 + clusters[chosen]
            original = (truth.labels * 3 + clusters)[clusters >= 0]
            large = [c for c in range(9) if (original == c).sum() >= 10]
            inside = clusters[chosen] >= 0
            means.append(np.mean([hits[inside & (cells == c)].mean() for c in large]))
        draws["unbiased"].append(np.mean(means))
    for name, values in draws.items():
        low, high = np.percentile(values, [2.5, 97.5])
        mine = found["by_class"][1] if name == "class 1" else found[name]
        difference = max(abs(mine[0] - low), abs(mine[1] - high)) / (high - low)
        print(f"{name}: {mine} for [{low:.4f}, {high:.4f}], {difference:.3f} of its width")
        assert difference < 0.08


def test_intervals_of_many_classes_and_no_cluster():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 20_000)
    right = rng.random(20_000) < 0.7
    none = np.zeros(20_000, bool)
    found = intervals(labels, right, none, np.zeros((0, 20_000), int), 1000, none)
    low, high = found["accuracy"]
    error = math.sqrt(0.7 * 0.3 / 20_000)
    assert low < right.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found["unbiased"] is None
