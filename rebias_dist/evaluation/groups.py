"""Figures by group, a class and a value of the bias; this module needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri  # importing scipy.stats would take a second

from rebias_dist.evaluation.unbiased import SMALLEST_CELL

FEW = 20
"""With more groups, texts show only the :data:`WORST` ones."""
WORST = 5
SMALL = "*"
"""Behind the worst group, and behind each group that is too small to be it."""


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
    large = [group for group in groups if not is_small(group)]
    return min(large, key=lambda group: group["accuracy"], default=None)


def name_of(group: Mapping[str, Any]) -> str:
    """Return the name of a group: its class and its value."""
    return f"{group['class']}, {group['value']}"


def is_small(group: Mapping[str, Any]) -> bool:
    """Return whether a group has too few samples to be the worst.

    A group whose samples are summed over runs has its ``fewest`` samples in a run too.
    """
    return bool(group.get("fewest", group["samples"]) < SMALLEST_CELL)


def worst_mark(groups: Iterable[Mapping[str, Any]]) -> str:
    """Return the mark of a worst group that leaves out smaller ones, else ""."""
    return SMALL * any(map(is_small, groups))


def left_out(groups: Iterable[Mapping[str, Any]], split: str = "") -> str:
    """Return the footnote to a worst group that leaves out smaller ones, else ""."""
    small = {name_of(group): f"{group['samples']:,}" for group in groups if is_small(group)}
    return footnote(small, split)


def footnote(small: Mapping[str, str], split: str = "") -> str:
    """Return the footnote on small groups, by name with their numbers of samples; "" for none."""
    where = f"{split}: " if split else ""
    told = (
        f"{SMALL} {where}the worst group leaves out groups of fewer than {SMALLEST_CELL} images: "
    )
    return told + listed(small) if small else ""


def listed(small: Mapping[str, str]) -> str:
    """Return groups by name with their numbers of samples as text; of many only the first."""
    texts = [f"({name}) {size}" for name, size in small.items()]
    if len(texts) <= FEW:
        return ", ".join(texts)
    return f"{', '.join(texts[:WORST])} and {len(texts) - WORST} more"


def shown_groups(groups: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Return the groups that a text shows, the worst first, and a note on those that it leaves out.

    Groups that are too small to be the worst come last.
    """
    ordered = sorted(groups, key=lambda g: (is_small(g), g["accuracy"]))
    if len(ordered) <= FEW:
        return ordered, ""
    return ordered[:WORST], f"the worst {WORST} of {len(ordered)} groups"


def lines(split: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of text on the groups of each network, for the log; none without bias labels."""
    for network, score in figures["networks"].items():
        if not score["groups"]:
            continue
        parts, mark = [f"accuracy {score['accuracy']:.3f}"], worst_mark(score["groups"])
        if worst := score["worst_group"]:
            parts.append(f"worst group {shown(worst, mark)} ({name_of(worst)})")
        else:
            parts.append(f"no worst group{mark}")
        for side in ("aligned", "conflicting"):
            if score[side] is not None:
                counted = {"accuracy": score[side], "samples": score[f"{side}_samples"]}
                parts.append(f"{side} {shown(counted)}")
        groups, note = shown_groups(score["groups"])
        told = ", ".join(f"({name_of(g)}) {g['accuracy']:.3f} of {g['samples']:,}" for g in groups)
        left = left_out(score["groups"])
        texts = [*parts, f"{note or 'groups'}: {told}", *([left] if left else [])]
        yield f"{split}, {network}: {'; '.join(texts)}"


def shown(counted: Mapping[str, Any], mark: str = "") -> str:
    """Return an accuracy with a mark, Wilson's interval and the number of samples, as text."""
    low, high = interval(counted["accuracy"], counted["samples"])
    return f"{counted['accuracy']:.3f}{mark} [{low:.3f}, {high:.3f}] of {counted['samples']:,}"
