"""Figures by group, a class and a value of the bias; this module needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri  # importing scipy.stats would take a second

from rebias_dist.evaluation.unbiased import SMALLEST_CELL

FEW = 20
"""With more groups, texts show only the :data:`WORST` ones."""
WORST = 5


def wilson(share: Any, samples: Any) -> tuple[Any, Any]:
    """Return Wilson's 95 % interval of a share of samples (JASA 1927), for numbers or arrays.

    ``samples`` are 1 or more.
    """
    z2 = ndtri(0.975) ** 2
    centre = share + z2 / (2 * samples)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * samples)) / samples)
    low, high = (centre - half) / (1 + z2 / samples), (centre + half) / (1 + z2 / samples)
    # Rounding may leave [0, 1].
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def interval(share: float, samples: int) -> list[float]:
    """Return Wilson's interval as a list."""
    return [float(bound) for bound in wilson(share, samples)]


def worst_group(correct: NDArray[np.int64], count: NDArray[np.int64]) -> dict[str, Any] | None:
    """Return the group with the lowest accuracy among those of ``SMALLEST_CELL`` or more samples.

    If several have it, the one with the lowest label, then the lowest value, is returned.

    Args:
        correct: right predictions, label × value of the bias.
        count: samples, label × value of the bias.

    Returns:
        ``label``, ``bias`` (the id of the value), ``accuracy``, ``samples`` and Wilson's
        ``interval``; None if no group is large enough.
    """
    groups = [
        (correct[label, bias] / count[label, bias], int(label), int(bias))
        for label, bias in np.argwhere(count >= SMALLEST_CELL)
    ]
    if not groups:
        return None
    value, label, bias = min(groups)
    samples = int(count[label, bias])
    return {
        "label": label,
        "bias": bias,
        "accuracy": float(value),
        "samples": samples,
        "interval": interval(float(value), samples),
    }


def group_of(name: str, value: str, correct: int, samples: int) -> dict[str, Any]:
    """Return a group, as :func:`groups_of` describes it, from its class, value and counts."""
    accuracy = correct / samples
    return {
        "class": name,
        "value": value,
        "samples": samples,
        "correct": correct,
        "accuracy": accuracy,
        "interval": interval(accuracy, samples),
    }


def groups_of(
    correct: ArrayLike, count: ArrayLike, classes: Sequence[str], values: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the groups that have samples, by name, small ones too.

    Args:
        correct: right predictions, label × value of the bias.
        count: samples, label × value of the bias.
        classes: names of the labels.
        values: names of the values.

    Returns:
        For each group ``class``, ``value``, ``samples``, ``correct``, ``accuracy`` and
        ``interval``, which is Wilson's.
    """
    right, total = np.asarray(correct, dtype=np.int64), np.asarray(count, dtype=np.int64)
    return [
        group_of(classes[label], values[value], int(right[label, value]), int(total[label, value]))
        for label, value in np.argwhere(total > 0)
    ]


def worst_named(groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the worst of :func:`groups_of`, as :func:`worst_group` does; None if all are small."""
    large = [group for group in groups if group["samples"] >= SMALLEST_CELL]
    return min(large, key=lambda group: group["accuracy"], default=None)


def name_of(group: Mapping[str, Any]) -> str:
    """Return the name of a group: its class and its value."""
    return f"{group['class']}, {group['value']}"


def shown_groups(groups: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Return the groups that a text shows, the worst first, and a note on those that it leaves out.

    Groups with fewer than ``SMALLEST_CELL`` samples come last.
    """
    ordered = sorted(groups, key=lambda g: (g["samples"] < SMALLEST_CELL, g["accuracy"]))
    if len(ordered) <= FEW:
        return ordered, ""
    return ordered[:WORST], f"the worst {WORST} of {len(ordered)} groups"


def lines(split: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of text on the groups of each network, for the log; none without bias labels."""
    for network, score in figures["networks"].items():
        if not score["groups"]:
            continue
        parts = [f"accuracy {score['accuracy']:.3f}"]
        if worst := score["worst_group"]:
            parts.append(f"worst group {shown(worst)} ({name_of(worst)})")
        for side in ("aligned", "conflicting"):
            if score[side] is not None:
                counted = {"accuracy": score[side], "samples": score[f"{side}_samples"]}
                parts.append(f"{side} {shown(counted)}")
        groups, note = shown_groups(score["groups"])
        listed = ", ".join(
            f"({name_of(g)}) {g['accuracy']:.3f} of {g['samples']:,}" for g in groups
        )
        yield f"{split}, {network}: {'; '.join(parts)}; {note or 'groups'}: {listed}"


def shown(counted: Mapping[str, Any]) -> str:
    """Return an accuracy with Wilson's interval and the number of samples, as text."""
    low, high = interval(counted["accuracy"], counted["samples"])
    return f"{counted['accuracy']:.3f} [{low:.3f}, {high:.3f}] of {counted['samples']:,}"
