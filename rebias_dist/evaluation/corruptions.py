"""ImageNet-C: accuracies by corruption and severity, from splits ``<corruption>-<severity>``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

SEVERITIES = 5
# Hendrycks & Dietterich, ICLR 2019: the 15 corruptions of the benchmark. The four extra ones are
# meant for validation.
BENCHMARK = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_SPLIT = re.compile(rf"({'|'.join(BENCHMARK + EXTRA)})-([1-{SEVERITIES}])")


def corruption_figures(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the accuracies on corrupted images by network; empty if there are no such splits.

    Args:
        splits: figures of each split, with its own name as ``split`` and, if known, the
            ``folder`` of its shards.

    Returns:
        For each network:

        ``corruptions``
            by name, the accuracies by severity (``severities``, numbers as text) and ``mean``;
        ``severities``
            by number as text, the mean over the benchmark's corruptions;
        ``mean``
            the mean of these corruptions' means;
        ``splits``
            how many of the benchmark's 75 splits there are.

        A mean is over the splits that there are, and None if there is none. The four extra
        corruptions count only for their own mean. If a corruption and severity occurs twice, the
        keys have the folder too: 'f on FOLDER'.
    """
    corrupted = [figures for figures in splits.values() if is_corruption(figures["split"])]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for figures, place in zip(corrupted, _sets(corrupted), strict=True):
        corruption, _, severity = figures["split"].rpartition("-")
        for network, of_network in figures["networks"].items():
            key = f"{network} on {place}" if place else network
            by_severity = found.setdefault(key, {}).setdefault(corruption, {})
            by_severity[severity] = of_network["accuracy"]
    return {network: _summary(accuracies) for network, accuracies in found.items()}


def is_corruption(split: str) -> bool:
    """Return whether a split's name is that of an ImageNet-C split."""
    return _SPLIT.fullmatch(split) is not None


def _sets(corrupted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for each split, the folder to tell it by; '' for all if no name occurs twice."""
    folders = [PurePath(figures.get("folder", "")) for figures in corrupted]
    places = [[""] * len(folders), [str(f.parent) for f in folders], list(map(str, folders))]
    for of_splits in places:
        if len(set(zip(of_splits, (f["split"] for f in corrupted), strict=True))) == len(folders):
            return of_splits
    return places[-1]  # one folder is given twice; the figures are the same


def _summary(accuracies: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    ordered = [name for name in BENCHMARK + EXTRA if name in accuracies]
    corruptions = {
        name: {
            "severities": dict(sorted(accuracies[name].items())),
            "mean": _mean(list(accuracies[name].values())),
        }
        for name in ordered
    }
    counted = [name for name in ordered if name in BENCHMARK]
    severities = {
        severity: _mean([accuracies[c][severity] for c in counted if severity in accuracies[c]])
        for severity in map(str, range(1, SEVERITIES + 1))
    }
    return {
        "corruptions": corruptions,
        "severities": severities,
        "mean": _mean([corruptions[name]["mean"] for name in counted]),
        "splits": sum(len(accuracies[name]) for name in counted),
    }


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None
